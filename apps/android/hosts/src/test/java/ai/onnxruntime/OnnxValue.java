package ai.onnxruntime;

/** A stand-in, as {@link OrtSession} says. */
public interface OnnxValue extends AutoCloseable {
  @Override
  void close();
}
