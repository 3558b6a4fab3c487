package org.pytorch.executorch;

import java.io.BufferedInputStream;
import java.io.BufferedOutputStream;
import java.io.DataInputStream;
import java.io.DataOutputStream;
import java.io.IOException;
import java.io.UncheckedIOException;

/**
 * A stand-in: ExecuTorch's class, with the names and types that the loop uses, over the program itself in another process:
 * the command of the property {@code edgeloop.methods}, tests/pte_methods.py, runs each method with ExecuTorch's runtime.
 */
public class Module {
  public static final int LOAD_MODE_MMAP = 1;

  private final Process process;
  private final DataInputStream in;
  private final DataOutputStream out;

  private Module(String path) throws IOException {
    String[] command = (System.getProperty("edgeloop.methods") + "\n" + path).split("\n");
    process = new ProcessBuilder(command).redirectError(ProcessBuilder.Redirect.INHERIT).start();
    in = new DataInputStream(new BufferedInputStream(process.getInputStream()));
    out = new DataOutputStream(new BufferedOutputStream(process.getOutputStream()));
  }

  public static Module load(String path, int mode, int threads) {
    try {
      return new Module(path);
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }

  public String[] getMethods() {
    try {
      out.writeUTF("");
      out.flush();
      String[] found = new String[in.readInt()];
      for (int i = 0; i < found.length; i++) found[i] = in.readUTF();
      return found;
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }

  public EValue[] execute(String method, EValue... inputs) {
    try {
      out.writeUTF(method);
      out.writeInt(inputs.length);
      for (EValue each : inputs) {
        long[] shape = each.toTensor().shape();
        out.writeInt(shape.length);
        for (long size : shape) out.writeInt((int) size);
        for (float number : each.toTensor().getDataAsFloatArray()) out.writeFloat(number);
      }
      out.flush();
      EValue[] found = new EValue[in.readInt()];
      for (int i = 0; i < found.length; i++) {
        long[] shape = new long[in.readInt()];
        int count = 1;
        for (int j = 0; j < shape.length; j++) count *= (int) (shape[j] = in.readInt());
        var data = Tensor.allocateFloatBuffer(count);
        for (int j = 0; j < count; j++) data.put(j, in.readFloat());
        found[i] = EValue.from(Tensor.fromBlob(data, shape));
      }
      return found;
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }

  public void destroy() {
    process.destroy();
  }
}
