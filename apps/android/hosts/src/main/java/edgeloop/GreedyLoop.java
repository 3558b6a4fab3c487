package edgeloop;

/**
 * A sequence that a depth loop of one's own writes greedily: what it has so far, and who may come next. {@link OnnxLoop} and
 * {@link PteLoop} run the tokens; not for several threads at once.
 *
 * @param <E> what a run throws
 */
abstract class GreedyLoop<E extends Exception> implements AutoCloseable {
  final DepthProgram program;

  /** Tokens that there is room for. */
  final int capacity;

  /** Tokens of the sequence so far. */
  int cached;

  private int complete; // of these, the first ones that ran all depths
  private int reach; // to which depth all of them have K/V

  GreedyLoop(DepthProgram program, int capacity) {
    this.program = program;
    this.capacity = Math.min(capacity, program.context);
    reach = program.depths;
  }

  /** Runs {@code ids} behind the tokens so far through so many depths; returns the most likely token behind them. */
  abstract int pass(int[] ids, int depths) throws E;

  /** R: how many depths there are. */
  public final int depths() {
    return program.depths;
  }

  /** Does a text end with {@code token}? */
  public final boolean ends(int token) {
    return program.ends.contains((long) token);
  }

  /** How many tokens the sequence has. */
  public final int tokens() {
    return cached;
  }

  /** Only the first {@code tokens} stay: what comes next is written over the others. */
  public final void back(int tokens) {
    cached = Math.min(cached, tokens);
    if (cached <= complete) reach = program.depths;
    complete = Math.min(complete, cached);
  }

  /**
   * The most likely token behind {@code ids}, which follow on the tokens so far and run all depths. Where tokens of an
   * answer left early they have no K/V deeper down: go {@link #back} to before them, and give them again in the prompt.
   */
  public final int prompt(int... ids) throws E {
    if (ids.length == 0) throw new IllegalArgumentException("no tokens to go on from; give at least one");
    return next(ids, program.depths);
  }

  /** The most likely token behind {@code id}, a token of an answer, which leaves after {@code depths} depths. */
  public final int step(int id, int depths) throws E {
    if (depths < 1 || depths > program.depths)
      throw new IllegalArgumentException("depths " + depths + ", and the model has " + program.depths);
    return next(new int[] {id}, depths);
  }

  private int next(int[] ids, int depths) throws E {
    if (depths > reach)
      throw new IllegalStateException(
          (cached - complete) + " tokens left early; go back to " + complete + " and begin the prompt with them");
    if (ids.length > capacity - cached)
      throw new IllegalArgumentException((cached + ids.length) + " tokens, and there is room for " + capacity);
    for (int id : ids)
      if (id < 0 || id >= program.vocabulary)
        throw new IllegalArgumentException("token " + id + " is not in the vocabulary of " + program.vocabulary);
    int found = pass(ids, depths);
    cached += ids.length;
    reach = depths;
    if (depths == program.depths) complete = cached;
    return found;
  }
}
