package edgeloop;

import java.util.Objects;

/**
 * How a model is opened.
 *
 * @param threads at most so many compute, the caller's included; 0: as many as there are cores
 * @param floatActivations inputs of quantized matrices stay floats, which is slower and a little nearer to the original
 * @param kernels the name of a table of kernels, or "": the best that the processor has
 */
public record ModelOptions(int threads, boolean floatActivations, String kernels) {
  public static final ModelOptions DEFAULT = new ModelOptions(0, false, "");

  public ModelOptions {
    if (threads < 0) throw new IllegalArgumentException("threads is " + threads + ", wanted 0 or more");
    Objects.requireNonNull(kernels, "kernels");
  }

  /** As the default, with this many threads: on phones often the number of fast cores. */
  public static ModelOptions threads(int threads) {
    return new ModelOptions(threads, false, "");
  }
}
