package ai.onnxruntime;

/** A stand-in, as {@link OrtSession} says. */
public final class OrtEnvironment {
  private static final OrtEnvironment ONLY = new OrtEnvironment();

  private OrtEnvironment() {}

  public static OrtEnvironment getEnvironment() {
    return ONLY;
  }

  public OrtSession createSession(String path, OrtSession.SessionOptions options) throws OrtException {
    return new OrtSession(path);
  }
}
