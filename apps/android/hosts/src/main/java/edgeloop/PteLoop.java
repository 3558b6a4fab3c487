package edgeloop;

import java.io.IOException;
import java.nio.FloatBuffer;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeSet;
import org.pytorch.executorch.EValue;
import org.pytorch.executorch.Module;
import org.pytorch.executorch.Tensor;

/**
 * The depth loop over the methods of a bundle's .pte, greedy, for one sequence, a token a call: the smallest host on
 * ExecuTorch's Java API. What the runner in apps/board/native does besides, chunks of a prompt and memory that is bound
 * once, this API has no way for, or it is left out.
 *
 * <p>To copy into an app with {@link GreedyLoop}, {@link DepthProgram}, {@link EmbeddingRows} and {@link Json}. Inputs and outputs as
 * docs/in-your-app.md has them.
 */
public final class PteLoop extends GreedyLoop<RuntimeException> {
  private static final float MASKED = -1e9f;

  private final int width;
  private final int heads; // of K/V
  private final int dim; // of a head
  private final int turned; // numbers of cos and sin
  private final EmbeddingRows embedding;
  private final Module module;
  private final FloatBuffer state;
  private final FloatBuffer depth;
  private final FloatBuffer cos;
  private final FloatBuffer sin;
  private final FloatBuffer mask;
  private final List<Stage> stages = new ArrayList<>();
  private final Stage head;

  /**
   * Opens the bundle's program, with K/V for {@code capacity} tokens at most; {@code threads}: 0 as many as ExecuTorch
   * takes by itself. IOException for a folder that is no bundle; IllegalArgumentException, in one line, for a model that
   * this loop would run wrongly.
   */
  public PteLoop(Path bundle, int capacity, int threads) throws IOException {
    super(DepthProgram.read(bundle.resolve("manifest.json")), Math.max(2, capacity)); // methods take caches from 2 rows on
    Path folder = bundle.resolve("executorch");
    Map<String, Object> layout = DepthProgram.json(folder.resolve("layout.json"));
    Map<String, Object> sizes = DepthProgram.object(layout, "sizes");
    check(layout, sizes);
    width = DepthProgram.whole(sizes, "width");
    heads = DepthProgram.whole(sizes, "kv_heads");
    dim = DepthProgram.whole(sizes, "head_dim");
    turned = program.turned;
    embedding = new EmbeddingRows(folder, layout);
    state = Tensor.allocateFloatBuffer(width);
    depth = Tensor.allocateFloatBuffer(program.depths);
    cos = Tensor.allocateFloatBuffer(Math.max(1, turned));
    sin = Tensor.allocateFloatBuffer(Math.max(1, turned));
    mask = Tensor.allocateFloatBuffer(1 + this.capacity);
    Path path = folder.resolve(DepthProgram.known(layout, "program").toString());
    module = Module.load(path.toString(), Module.LOAD_MODE_MMAP, threads);
    Set<String> methods = Set.of(module.getMethods());
    if (methods.contains("prologue_m1")) stages.add(new Stage("prologue", 0));
    for (int i = 0; i < program.depths; i++) stages.add(new Stage("block", i));
    if (methods.contains("epilogue_m1")) stages.add(new Stage("epilogue", 0));
    head = new Stage("head", 0);
  }

  private static void check(Map<String, Object> layout, Map<String, Object> sizes) {
    List<String> beyond = new ArrayList<>();
    if (sizes.get("beyond") != null) for (Object what : DepthProgram.list(sizes, "beyond")) beyond.add(what.toString());
    if (sizes.get("window") != null) beyond.add("a sliding window");
    if (layout.get("data") != null && !DepthProgram.list(layout, "data").isEmpty())
      beyond.add("weights in .ptd files, of which Module.load takes none (export without --split-weights)");
    if (!beyond.isEmpty())
      throw new IllegalArgumentException("the bundle has " + String.join(", ", beyond) + ": this loop knows none");
  }

  @Override
  int pass(int[] ids, int depths) {
    for (int i = 0; i < ids.length; i++) run(ids[i], cached + i, depths);
    EValue[] logits = module.execute(head.method, head.inputs);
    return DepthProgram.likeliest(FloatBuffer.wrap(logits[0].toTensor().getDataAsFloatArray()));
  }

  /** One token through all stages: its state is the head's then. */
  private void run(int id, int at, int depths) {
    embedding.row(id, state);
    for (int i = 0; i < turned / 2; i++) {
      double angle = program.angle(at, i);
      int one = program.pairs ? 2 * i : i;
      int other = program.pairs ? one + 1 : turned / 2 + i;
      cos.put(one, (float) Math.cos(angle)).put(other, (float) Math.cos(angle));
      sin.put(one, (float) -Math.sin(angle)).put(other, (float) Math.sin(angle));
    }
    for (int i = 0; i <= capacity; i++) mask.put(i, i <= at ? 0 : MASKED); // its own row is the first
    for (Stage stage : stages) if (stage.depth < depths) stage.run(at); // the depth loop
  }

  @Override
  public void close() {
    module.destroy();
  }

  /** A method at a depth, and its K/V: tensors over memory that stays where it is. */
  private final class Stage {
    final String method;
    final int depth;
    final EValue[] inputs;
    final List<FloatBuffer> caches = new ArrayList<>(); // of each layer keys and values, [heads, capacity, dim]

    Stage(String kind, int depth) {
      method = kind + "_m1";
      this.depth = depth;
      List<EValue> given = new ArrayList<>();
      given.add(tensor(state, 1, width));
      boolean turns = false;
      Set<Long> layers = new TreeSet<>();
      if (!kind.equals("head")) {
        for (Map<String, Object> op : program.ops(kind)) {
          turns |= op.get("op").equals("rotate");
          if (op.get("cache") instanceof Long) layers.add((Long) op.get("cache"));
        }
      }
      if (kind.equals("block") && program.depths > 1 && program.differs())
        given.add(tensor(PteLoop.this.depth, 1, program.depths));
      if (turns) {
        given.add(tensor(cos, 1, 1, turned));
        given.add(tensor(sin, 1, 1, turned));
      }
      if (!layers.isEmpty()) given.add(tensor(mask, 1, 1, 1 + capacity));
      for (int i = 0; i < 2 * layers.size(); i++) {
        caches.add(Tensor.allocateFloatBuffer(heads * capacity * dim));
        given.add(tensor(caches.get(i), heads, capacity, dim));
      }
      inputs = given.toArray(new EValue[0]);
    }

    void run(int at) {
      for (int i = 0; i < program.depths; i++) PteLoop.this.depth.put(i, i == depth ? 1 : 0);
      EValue[] outputs = module.execute(method, inputs);
      if (outputs.length != 1 + caches.size())
        throw new IllegalArgumentException(method + " gives other outputs than this loop knows; export the checkpoint again");
      float[] next = outputs[0].toTensor().getDataAsFloatArray();
      for (int i = 0; i < width; i++) state.put(i, next[i]);
      for (int i = 0; i < caches.size(); i++) {
        float[] row = outputs[1 + i].toTensor().getDataAsFloatArray(); // [1, heads, dim]
        for (int j = 0; j < row.length; j++) caches.get(i).put((j / dim * capacity + at) * dim + j % dim, row[j]);
      }
    }

    private EValue tensor(FloatBuffer memory, long... shape) {
      return EValue.from(Tensor.fromBlob(memory, shape));
    }
  }
}
