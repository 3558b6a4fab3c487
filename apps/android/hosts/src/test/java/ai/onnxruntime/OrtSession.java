package ai.onnxruntime;

import java.io.BufferedInputStream;
import java.io.BufferedOutputStream;
import java.io.DataInputStream;
import java.io.DataOutputStream;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.Optional;
import java.util.Set;

/**
 * A stand-in for where {@code make app-hosts} was not: ONNX Runtime's classes, with the names and types that the loop uses,
 * over the graph itself in another process: the command of the property {@code edgeloop.graphs}, tests/onnx_graphs.py, runs
 * it with ONNX Runtime.
 */
public class OrtSession implements AutoCloseable {
  private final Process process;
  private final DataInputStream in;
  private final DataOutputStream out;
  private final Map<String, NodeInfo> inputs;
  private final Map<String, NodeInfo> outputs;

  OrtSession(String path) throws OrtException {
    try {
      String[] command = (System.getProperty("edgeloop.graphs") + "\n" + path).split("\n");
      process = new ProcessBuilder(command).redirectError(ProcessBuilder.Redirect.INHERIT).start();
      in = new DataInputStream(new BufferedInputStream(process.getInputStream()));
      out = new DataOutputStream(new BufferedOutputStream(process.getOutputStream()));
      inputs = infos();
      outputs = infos();
    } catch (IOException e) {
      throw new OrtException(e);
    }
  }

  private Map<String, NodeInfo> infos() throws IOException {
    Map<String, NodeInfo> found = new LinkedHashMap<>();
    for (int count = in.readInt(); count > 0; count--) found.put(in.readUTF(), new NodeInfo(new TensorInfo(shape())));
    return found;
  }

  private long[] shape() throws IOException {
    long[] shape = new long[in.readInt()];
    for (int i = 0; i < shape.length; i++) shape[i] = in.readInt();
    return shape;
  }

  public Set<String> getInputNames() {
    return inputs.keySet();
  }

  public Set<String> getOutputNames() {
    return outputs.keySet();
  }

  public Map<String, NodeInfo> getInputInfo() throws OrtException {
    return inputs;
  }

  /** All inputs go out, and all outputs come in: what is pinned is written to where it lies. */
  public Result run(Map<String, OnnxTensor> given, Set<String> requested, Map<String, ? extends OnnxValue> pinned)
      throws OrtException {
    try {
      if (!given.keySet().equals(inputs.keySet())) throw new IllegalArgumentException("inputs " + given.keySet());
      for (String name : inputs.keySet()) {
        OnnxTensor tensor = given.get(name).open();
        out.writeUTF(tensor.type);
        out.writeInt(tensor.shape.length);
        for (long size : tensor.shape) out.writeInt((int) size);
        byte[] bytes = new byte[tensor.bytes.capacity()];
        for (int i = 0; i < bytes.length; i++) bytes[i] = tensor.bytes.get(i);
        out.write(bytes);
      }
      out.flush();
      Result result = new Result();
      for (String name : outputs.keySet()) {
        long[] shape = shape();
        byte[] bytes = new byte[in.readInt()];
        in.readFully(bytes);
        OnnxTensor goal = (OnnxTensor) pinned.get(name);
        if (goal != null) for (int i = 0; i < bytes.length; i++) goal.bytes.put(i, bytes[i]);
        else if (requested.contains(name)) result.values.put(name, new OnnxTensor(ByteBuffer.wrap(bytes), shape, "float32"));
      }
      return result;
    } catch (IOException e) {
      throw new OrtException(e);
    }
  }

  public String endProfiling() throws OrtException {
    throw new IllegalStateException("a stand-in has no profile");
  }

  @Override
  public void close() throws OrtException {
    process.destroy();
  }

  /** What was requested of a run. */
  public static class Result implements AutoCloseable {
    final Map<String, OnnxValue> values = new HashMap<>();

    public Optional<OnnxValue> get(String name) {
      return Optional.ofNullable(values.get(name));
    }

    @Override
    public void close() {
      for (OnnxValue each : values.values()) each.close();
    }
  }

  /** Options that a stand-in does without. */
  public static class SessionOptions implements AutoCloseable {
    public void setIntraOpNumThreads(int count) throws OrtException {}

    public void enableProfiling(String path) throws OrtException {}

    @Override
    public void close() {}
  }
}
