package edgeloop;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import java.util.Objects;

/**
 * How an answer is written, and when it ends.
 *
 * @param maxTokens at most so many; 0: until the conversation is full
 * @param sampling how tokens are chosen
 * @param stops texts that end it, and are cut off
 * @param endless the model's own ends end nothing: for measurements
 */
public record AnswerOptions(int maxTokens, Sampling sampling, List<String> stops, boolean endless) {
  public static final AnswerOptions DEFAULT = new AnswerOptions(0, Sampling.GREEDY, Collections.emptyList(), false);

  public AnswerOptions {
    if (maxTokens < 0) throw new IllegalArgumentException("maxTokens is " + maxTokens + ", wanted 0 or more");
    Objects.requireNonNull(sampling, "sampling");
    stops = Collections.unmodifiableList(new ArrayList<>(stops));
  }

  public static AnswerOptions atMost(int tokens) {
    return DEFAULT.withMaxTokens(tokens);
  }

  public AnswerOptions withMaxTokens(int tokens) {
    return new AnswerOptions(tokens, sampling, stops, endless);
  }

  public AnswerOptions withSampling(Sampling other) {
    return new AnswerOptions(maxTokens, other, stops, endless);
  }

  public AnswerOptions withStops(String... texts) {
    return new AnswerOptions(maxTokens, sampling, Arrays.asList(texts), endless);
  }

  public AnswerOptions withEndless(boolean wanted) {
    return new AnswerOptions(maxTokens, sampling, stops, wanted);
  }
}
