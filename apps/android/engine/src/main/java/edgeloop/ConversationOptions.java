package edgeloop;

import java.util.Objects;

/**
 * What a conversation is made with.
 *
 * @param capacity tokens that it may have; 0: as many as the model allows. Memory is taken as they come
 * @param kv how K and V are kept
 * @param exit after which depth a token stops: "never", "depth:2", "latent:0.9" …, as {@code edgeloop run --exit} has it
 * @param sampling how tokens are chosen
 */
public record ConversationOptions(int capacity, Kv kv, String exit, Sampling sampling) {
  /** How many bits a number of K and V has; in the order of edgeloop.h. */
  public enum Kv {
    FLOAT32,
    FLOAT16,
    INT8,
    INT4
  }

  public static final ConversationOptions DEFAULT =
      new ConversationOptions(0, Kv.FLOAT16, "never", Sampling.GREEDY);

  public ConversationOptions {
    if (capacity < 0) throw new IllegalArgumentException("capacity is " + capacity + ", wanted 0 or more");
    Objects.requireNonNull(kv, "kv");
    Objects.requireNonNull(exit, "exit");
    Objects.requireNonNull(sampling, "sampling");
  }

  public ConversationOptions withCapacity(int tokens) {
    return new ConversationOptions(tokens, kv, exit, sampling);
  }

  public ConversationOptions withKv(Kv other) {
    return new ConversationOptions(capacity, other, exit, sampling);
  }

  public ConversationOptions withExit(String rule) {
    return new ConversationOptions(capacity, kv, rule, sampling);
  }

  public ConversationOptions withSampling(Sampling other) {
    return new ConversationOptions(capacity, kv, exit, other);
  }
}
