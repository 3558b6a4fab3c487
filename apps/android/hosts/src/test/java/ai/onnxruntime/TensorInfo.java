package ai.onnxruntime;

/** A stand-in, as {@link OrtSession} says. */
public class TensorInfo implements ValueInfo {
  private final long[] shape;

  TensorInfo(long[] shape) {
    this.shape = shape;
  }

  public long[] getShape() {
    return shape.clone();
  }
}
