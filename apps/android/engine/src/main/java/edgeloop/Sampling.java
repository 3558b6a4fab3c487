package edgeloop;

/**
 * How the next token is chosen; the same numbers and seed give the same tokens as in Python.
 *
 * @param temperature 0: the likeliest token, and nothing below counts
 * @param topK of so many likeliest tokens; 0: off
 * @param topP of the likeliest ones that together have this probability; 1: off
 * @param minP of those that have this share of the likeliest one's probability; 0: off
 * @param seed what is drawn follows from it and the position alone; 64 bits without a sign
 */
public record Sampling(double temperature, int topK, double topP, double minP, long seed) {
  public static final Sampling GREEDY = new Sampling(0, 0, 1, 0, 0);

  /** At a temperature, by a seed. */
  public static Sampling at(double temperature, long seed) {
    return new Sampling(temperature, 0, 1, 0, seed);
  }
}
