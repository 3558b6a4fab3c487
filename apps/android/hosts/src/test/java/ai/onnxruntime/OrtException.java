package ai.onnxruntime;

/** A stand-in, as {@link OrtSession} says. */
public class OrtException extends Exception {
  private static final long serialVersionUID = 1;

  OrtException(Exception cause) {
    super(cause);
  }
}
