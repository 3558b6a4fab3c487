package ai.onnxruntime;

/** A stand-in, as {@link OrtSession} says. */
public interface ValueInfo {}
