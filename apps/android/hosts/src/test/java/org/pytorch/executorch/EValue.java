package org.pytorch.executorch;

/** A stand-in: what of ExecuTorch's class the loop uses. */
public final class EValue {
  private final Tensor tensor;

  private EValue(Tensor tensor) {
    this.tensor = tensor;
  }

  public static EValue from(Tensor tensor) {
    return new EValue(tensor);
  }

  public Tensor toTensor() {
    return tensor;
  }
}
