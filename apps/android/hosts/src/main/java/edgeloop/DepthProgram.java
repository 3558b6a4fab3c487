package edgeloop;

import java.io.IOException;
import java.nio.FloatBuffer;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;

/** What a depth loop of one's own has to know of a bundle's model: {@code program} of manifest.json (docs/bundle.md). */
final class DepthProgram {
  private static final long FORMAT = 4; // of manifest.json

  /** R, the most tokens of a sequence, and V. */
  final int depths;

  final int context;
  final int vocabulary;

  /** How many dims of a head are rotated, 0 for none, by which base; do neighbours turn against each other, or halves? */
  final int turned;

  final double theta;
  final boolean pairs;

  /** Tokens with which a text ends. */
  final Set<Object> ends;

  private final Map<String, Object> program;
  private final List<Map<String, Object>> rotates = new ArrayList<>();

  private DepthProgram(Path path, Map<String, Object> manifest) {
    if (!manifest.get("format").equals(FORMAT))
      throw new IllegalArgumentException(
          path + " has format " + manifest.get("format") + ", this loop reads " + FORMAT + "; export the checkpoint again");
    program = object(manifest, "program");
    Map<String, Object> loop = object(program, "loop");
    depths = list(loop, "schedule").size();
    context = whole(program, "context_length");
    vocabulary = whole(program, "vocab_size");
    ends = program.containsKey("eos_token_ids") ? new HashSet<>(list(program, "eos_token_ids")) : Set.of();
    Set<Object> turns = new HashSet<>();
    Set<String> beyond = new HashSet<>();
    if (list(loop, "blocks").size() > 1) beyond.add("several blocks in its loop");
    if (program.get("routing") != null) beyond.add("a router, which decides how deep each token goes");
    for (String stage : new String[] {"prologue", "block", "epilogue"}) {
      for (Map<String, Object> op : ops(stage)) {
        if (op.get("op").equals("rotate")) {
          rotates.add(op);
          turns.add(List.of(object(op, "by"), op.getOrDefault("pairs", false)));
          if (object(op, "by").get("scaling") != null) beyond.add("scaled rotations");
        } else if (op.containsKey("q") && op.containsKey("k")) { // attention, but to learned keys
          if (!op.getOrDefault("mask", "causal").equals("causal")) beyond.add("tokens that see later ones");
          if (op.get("cache") == null) beyond.add("attention without K/V of earlier calls");
          if (!op.getOrDefault("slot", "own").equals("own")) beyond.add("K/V that depths share");
        }
      }
    }
    if (turns.size() > 1) beyond.add("rotations of several kinds");
    if (!beyond.isEmpty())
      throw new IllegalArgumentException(path + " is of a model with " + String.join(", ", beyond) + ": this loop knows none");
    Map<String, Object> by = rotates.isEmpty() ? Map.of() : object(rotates.get(0), "by");
    turned = rotates.isEmpty() ? 0 : whole(by, "dims");
    theta = rotates.isEmpty() ? 1 : ((Number) by.get("theta")).doubleValue();
    pairs = !rotates.isEmpty() && rotates.get(0).getOrDefault("pairs", false).equals(true);
  }

  /** Reads a manifest; IllegalArgumentException, in one line, for a model that a plain loop would run wrongly. */
  static DepthProgram read(Path path) throws IOException {
    return new DepthProgram(path, json(path));
  }

  /** The object that a file of JSON has; IllegalArgumentException, with the file's name, for one that has none. */
  static Map<String, Object> json(Path path) throws IOException {
    try {
      return object(Map.of("", Json.read(new String(Files.readAllBytes(path), StandardCharsets.UTF_8))), "");
    } catch (IllegalArgumentException | ClassCastException e) {
      throw new IllegalArgumentException(path + ": " + e.getMessage(), e);
    }
  }

  /** The ops of a stage, in order: prologue, block or epilogue. */
  List<Map<String, Object>> ops(String stage) {
    Object found = stage.equals("block") ? list(object(program, "loop"), "blocks").get(0) : program.get(stage);
    List<Map<String, Object>> ops = new ArrayList<>();
    for (Object op : list(object(Map.of("", found), ""), "ops")) ops.add(object(Map.of("", op), ""));
    return ops;
  }

  /** By how much pair {@code pair} of a head turns at a position, in radians. */
  double angle(int position, int pair) {
    return position * Math.pow(theta, -2.0 * pair / turned);
  }

  /** Does anything that the block uses differ between depths? */
  boolean differs() {
    Map<String, Object> weights = object(program, "weights");
    for (Map<String, Object> op : ops("block")) {
      if (op.get("at") != null) continue; // a depth's of its own
      for (Object name : op.values()) {
        if (!(name instanceof String) || !weights.containsKey(name)) continue;
        Map<String, Object> weight = object(weights, (String) name);
        if (weight.containsKey("rows") || weight.containsKey("copies") || weight.containsKey("deltas")) return true;
      }
    }
    return false;
  }

  /** The token with the largest of the logits [V], the first of several. */
  static int likeliest(FloatBuffer logits) {
    int best = 0;
    for (int i = 1; i < logits.remaining(); i++) if (logits.get(i) > logits.get(best)) best = i;
    return best;
  }

  @SuppressWarnings("unchecked") // JSON's objects are made with these types
  static Map<String, Object> object(Map<String, Object> of, String name) {
    return (Map<String, Object>) known(of, name);
  }

  static List<?> list(Map<String, Object> of, String name) {
    return (List<?>) known(of, name);
  }

  static int whole(Map<String, Object> of, String name) {
    return Math.toIntExact((Long) known(of, name));
  }

  static Object known(Map<String, Object> of, String name) {
    Object found = of.get(name);
    if (found == null) throw new IllegalArgumentException("it has no " + name + "; export the checkpoint again");
    return found;
  }
}
