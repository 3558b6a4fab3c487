package edgeloop;

import java.util.Arrays;

/**
 * When an answer ends.
 *
 * @param maxTokens at most so many
 * @param ends ids at which it ends; they are given to nobody
 */
public record AnswerOptions(int maxTokens, long[] ends) {
  public AnswerOptions {
    if (maxTokens < 1) throw new IllegalArgumentException("maxTokens is " + maxTokens + ", wanted 1 or more");
    ends = ends.clone();
  }

  public static AnswerOptions atMost(int tokens, long... ends) {
    return new AnswerOptions(tokens, ends);
  }

  @Override
  public long[] ends() {
    return ends.clone();
  }

  @Override
  public boolean equals(Object other) {
    return other instanceof AnswerOptions o && o.maxTokens == maxTokens && Arrays.equals(o.ends, ends);
  }

  @Override
  public int hashCode() {
    return 31 * maxTokens + Arrays.hashCode(ends);
  }
}
