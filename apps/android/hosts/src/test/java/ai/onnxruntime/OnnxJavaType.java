package ai.onnxruntime;

/** A stand-in, as {@link OrtSession} says: the types that the loop uses. */
public enum OnnxJavaType {
  FLOAT
}
