package ai.onnxruntime;

/** A stand-in, as {@link OrtSession} says. */
public class NodeInfo {
  private final ValueInfo info;

  NodeInfo(ValueInfo info) {
    this.info = info;
  }

  public ValueInfo getInfo() {
    return info;
  }
}
