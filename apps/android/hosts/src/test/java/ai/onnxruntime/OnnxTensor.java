package ai.onnxruntime;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import java.nio.IntBuffer;
import java.nio.LongBuffer;

/** A stand-in, as {@link OrtSession} says: direct bytes are used where they lie, arrays are copied. */
public final class OnnxTensor implements OnnxValue {
  final ByteBuffer bytes;
  final long[] shape;
  final String type; // as numpy has it
  private boolean closed;

  OnnxTensor(ByteBuffer bytes, long[] shape, String type) {
    long count = type.equals("int64") ? 8 : 4;
    for (long size : shape) count *= size;
    if (count != bytes.capacity()) throw new IllegalArgumentException(count + " bytes, not " + bytes.capacity());
    this.bytes = bytes.order(ByteOrder.nativeOrder());
    this.shape = shape;
    this.type = type;
  }

  public static OnnxTensor createTensor(OrtEnvironment of, FloatBuffer data, long[] shape) throws OrtException {
    OnnxTensor made = new OnnxTensor(ByteBuffer.allocate(4 * data.remaining()), shape, "float32");
    made.bytes.asFloatBuffer().put(data.duplicate());
    return made;
  }

  public static OnnxTensor createTensor(OrtEnvironment of, LongBuffer data, long[] shape) throws OrtException {
    OnnxTensor made = new OnnxTensor(ByteBuffer.allocate(8 * data.remaining()), shape, "int64");
    made.bytes.asLongBuffer().put(data.duplicate());
    return made;
  }

  public static OnnxTensor createTensor(OrtEnvironment of, IntBuffer data, long[] shape) throws OrtException {
    OnnxTensor made = new OnnxTensor(ByteBuffer.allocate(4 * data.remaining()), shape, "int32");
    made.bytes.asIntBuffer().put(data.duplicate());
    return made;
  }

  public static OnnxTensor createTensor(OrtEnvironment of, ByteBuffer data, long[] shape, OnnxJavaType type)
      throws OrtException {
    if (!data.isDirect()) throw new IllegalArgumentException("direct memory is wanted");
    return new OnnxTensor(data, shape, "float32");
  }

  public FloatBuffer getFloatBuffer() {
    return open().bytes.asFloatBuffer();
  }

  OnnxTensor open() {
    if (closed) throw new IllegalStateException("the tensor is closed");
    return this;
  }

  @Override
  public void close() {
    closed = true;
  }
}
