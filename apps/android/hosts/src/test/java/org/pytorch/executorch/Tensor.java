package org.pytorch.executorch;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;

/** A stand-in: what of ExecuTorch's class the loop uses, for float32, with its rules for memory. */
public final class Tensor {
  private final FloatBuffer data;
  private final long[] shape;

  private Tensor(FloatBuffer data, long[] shape) {
    this.data = data;
    this.shape = shape.clone();
  }

  public static FloatBuffer allocateFloatBuffer(int count) {
    return ByteBuffer.allocateDirect(4 * count).order(ByteOrder.nativeOrder()).asFloatBuffer();
  }

  public static Tensor fromBlob(FloatBuffer data, long[] shape) {
    long count = 1;
    for (long size : shape) count *= size;
    if (count != data.capacity() || !data.isDirect() || data.order() != ByteOrder.nativeOrder())
      throw new IllegalArgumentException("a direct buffer of " + count + " numbers is wanted, not of " + data.capacity());
    return new Tensor(data, shape);
  }

  public long[] shape() {
    return shape.clone();
  }

  public float[] getDataAsFloatArray() {
    float[] found = new float[data.capacity()];
    for (int i = 0; i < found.length; i++) found[i] = data.get(i);
    return found;
  }
}
