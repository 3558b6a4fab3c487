package edgeloop;

import ai.onnxruntime.NodeInfo;
import ai.onnxruntime.OnnxJavaType;
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import ai.onnxruntime.OrtSession;
import ai.onnxruntime.TensorInfo;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import java.nio.IntBuffer;
import java.nio.LongBuffer;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;

/**
 * The depth loop over a bundle's ONNX graphs, greedy, for one sequence: the smallest host on ONNX Runtime's Java API.
 *
 * <p>To copy into an app with {@link GreedyLoop}, {@link DepthProgram} and {@link Json}. Inputs and outputs as docs/in-your-app.md has them.
 */
public final class OnnxLoop extends GreedyLoop<OrtException> {
  private static final Set<String> KNOWN =
      Set.of("ids", "state", "depth", "rows", "positions", "tokens", "last", "longest", "cos", "sin");

  private final OrtEnvironment environment = OrtEnvironment.getEnvironment();
  private final List<AutoCloseable> opened = new ArrayList<>();
  private final Map<String, OnnxTensor> tables = new HashMap<>(); // cos and sin [capacity, dims / 2]
  private final Graph prologue;
  private final Graph block;
  private final Graph epilogue;

  /**
   * Opens the bundle's three graphs, with K/V for {@code capacity} tokens at most; {@code trace}: where each graph's
   * profile goes, or null for none. IOException for a folder that is no bundle; IllegalArgumentException, in one line,
   * for a model that this loop would run wrongly.
   */
  public OnnxLoop(Path bundle, int capacity, int threads, Path trace) throws IOException, OrtException {
    super(DepthProgram.read(bundle.resolve("manifest.json")), capacity);
    try (OrtSession.SessionOptions options = new OrtSession.SessionOptions()) {
      options.setIntraOpNumThreads(threads);
      for (String name : new String[] {"cos", "sin"}) tables.put(name, keep(table(name.equals("sin"))));
      Path folder = bundle.resolve("onnx");
      prologue = new Graph(folder.resolve("prologue.onnx"), 1, options, trace);
      block = new Graph(folder.resolve("block.onnx"), program.depths, options, trace);
      epilogue = new Graph(folder.resolve("epilogue.onnx"), 1, options, trace);
    } catch (RuntimeException | OrtException e) {
      close();
      throw e;
    }
  }

  @Override
  int pass(int[] ids, int depths) throws OrtException {
    Call call = new Call(ids);
    try {
      OnnxTensor state = call.run(prologue, 0, Map.of("ids", call.ids));
      for (int depth = 0; depth < depths; depth++) // the depth loop
        state = call.run(block, depth, Map.of("state", state));
      OnnxTensor logits = call.run(epilogue, 0, Map.of("state", state, "rows", call.rows));
      return DepthProgram.likeliest(logits.getFloatBuffer());
    } finally {
      call.close();
    }
  }

  /** Writes the profiles, where they were asked for, and lets go of all memory. */
  @Override
  public void close() {
    IllegalStateException failed = null;
    while (!opened.isEmpty()) { // the newest first
      try {
        opened.remove(opened.size() - 1).close();
      } catch (Exception e) {
        failed = new IllegalStateException(e.getMessage(), e);
      }
    }
    if (failed != null) throw failed;
  }

  private <T extends AutoCloseable> T keep(T value) {
    opened.add(value);
    return value;
  }

  private OnnxTensor table(boolean sine) throws OrtException {
    int half = program.turned / 2;
    float[] values = new float[capacity * half];
    for (int i = 0; i < values.length; i++) {
      double angle = program.angle(i / half, i % half);
      values[i] = (float) (sine ? Math.sin(angle) : Math.cos(angle));
    }
    return OnnxTensor.createTensor(environment, FloatBuffer.wrap(values), new long[] {capacity, half});
  }

  /** A graph, and the K/V of its slots: one for each depth of the block, one elsewhere. */
  private final class Graph {
    final OrtSession session;
    final String output; // state, next or logits
    final List<Map<String, OnnxTensor>> past = new ArrayList<>(); // by slot
    final List<Map<String, OnnxTensor>> present = new ArrayList<>(); // over the same memory: new rows are written in place

    Graph(Path path, int slots, OrtSession.SessionOptions options, Path trace) throws OrtException {
      // By its path and not from memory: it finds weights.safetensors beside it.
      if (trace != null) options.enableProfiling(trace.resolve(path.getFileName()).toString());
      session = environment.createSession(path.toString(), options);
      keep(session);
      if (trace != null) keep(() -> session.endProfiling()); // before it is closed
      for (int i = 0; i < slots; i++) {
        past.add(new HashMap<>());
        present.add(new HashMap<>());
      }
      String first = null;
      for (String name : session.getOutputNames()) if (!name.startsWith("present.")) first = name;
      output = first;
      for (Map.Entry<String, NodeInfo> input : session.getInputInfo().entrySet()) {
        String name = input.getKey();
        if (name.startsWith("past.")) {
          long[] shape = ((TensorInfo) input.getValue().getInfo()).getShape();
          for (int i = 0; i < slots; i++) add(i, name, new long[] {1, shape[1], capacity, shape[3]});
        } else if (!KNOWN.contains(name)) {
          throw new IllegalArgumentException(path + " takes " + name + ", which this loop does not know");
        }
      }
    }

    private void add(int slot, String name, long[] shape) throws OrtException {
      int bytes = Math.toIntExact(4 * shape[1] * shape[2] * shape[3]);
      ByteBuffer memory = ByteBuffer.allocateDirect(bytes).order(ByteOrder.nativeOrder()); // zeros
      OnnxJavaType type = OnnxJavaType.FLOAT;
      past.get(slot).put(name, keep(OnnxTensor.createTensor(environment, memory, shape, type)));
      String out = name.replace("past.", "present.");
      present.get(slot).put(out, keep(OnnxTensor.createTensor(environment, memory, shape, type)));
    }
  }

  /** The inputs that all calls of a pass have in common, and what the calls gave. */
  private final class Call {
    final List<AutoCloseable> made = new ArrayList<>();
    final Map<String, OnnxTensor> common = new HashMap<>(tables);
    final OnnxTensor ids;
    final OnnxTensor rows;

    Call(int[] tokens) throws OrtException {
      int count = tokens.length;
      long[] ids = new long[count];
      long[] positions = new long[count];
      for (int i = 0; i < count; i++) {
        ids[i] = tokens[i];
        positions[i] = cached + i;
      }
      this.ids = longs(ids, 1, count);
      rows = longs(new long[] {count - 1}, 1);
      common.put("positions", longs(positions, 1, count));
      common.put("tokens", number(count));
      common.put("last", number(cached + count - 1));
      common.put("longest", number(cached + count));
    }

    /** The state [1, S, D], or the logits [1, V], of a graph at a depth. */
    OnnxTensor run(Graph graph, int depth, Map<String, OnnxTensor> own) throws OrtException {
      Map<String, OnnxTensor> inputs = new HashMap<>(common);
      inputs.put("depth", longs(new long[] {depth}, 1));
      inputs.putAll(own);
      inputs.putAll(graph.past.get(depth));
      inputs.keySet().retainAll(graph.session.getInputNames());
      OrtSession.Result result = graph.session.run(inputs, Set.of(graph.output), graph.present.get(depth));
      made.add(result);
      return (OnnxTensor) result.get(graph.output).orElseThrow();
    }

    private OnnxTensor longs(long[] values, long... shape) throws OrtException {
      return made(OnnxTensor.createTensor(environment, LongBuffer.wrap(values), shape));
    }

    private OnnxTensor number(int value) throws OrtException {
      return made(OnnxTensor.createTensor(environment, IntBuffer.wrap(new int[] {value}), new long[] {1}));
    }

    private OnnxTensor made(OnnxTensor tensor) {
      made.add(tensor);
      return tensor;
    }

    void close() throws OrtException {
      for (AutoCloseable each : made) {
        if (each instanceof OrtSession.Result) ((OrtSession.Result) each).close();
        else ((OnnxTensor) each).close();
      }
    }
  }
}
