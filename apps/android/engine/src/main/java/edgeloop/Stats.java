package edgeloop;

import java.util.List;

/**
 * What a conversation has come to.
 *
 * @param tokens that it has
 * @param cached of those, what was run
 * @param kvBytes of its K and V
 * @param sharedBytes of those, what other conversations share
 * @param generated tokens of answers
 * @param drafts tokens that were fed before they were final
 * @param draftsRight of those, what became final
 * @param exits tokens of answers by the depths that ran for them, 1 first
 */
public record Stats(long tokens, long cached, long kvBytes, long sharedBytes, long generated, long drafts,
    long draftsRight, List<Long> exits) {
  /** Depths that a token of an answer ran in the mean; 0 without one. */
  public double meanDepth() {
    long all = 0;
    long sum = 0;
    for (int i = 0; i < exits.size(); i++) {
      all += exits.get(i);
      sum += (i + 1) * exits.get(i);
    }
    return all == 0 ? 0 : (double) sum / all;
  }
}
