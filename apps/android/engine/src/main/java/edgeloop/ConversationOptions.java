package edgeloop;

import java.util.Objects;

/**
 * What a conversation is made with.
 *
 * @param capacity tokens that it may have; 0: as many as the model allows. Memory is taken as they come
 * @param kv how K and V are kept
 * @param exit after which depth a token stops: "never", "depth:2", "latent:0.02", a calibrated rule's name …, as
 *     {@code edgeloop run --exit} has it; "": full depth, or the model's router
 * @param skippedKv what stands for K and V of depths that a token skipped, as {@code --skipped-kv}; "": what a calibrated
 *     rule was measured with, else the first that the model can have
 * @param drafts tokens may be fed before they are final, where that pays: the same tokens sooner
 * @param thinking whether the model is asked to think first, where it can be
 * @param answerRoom a conversation that leaves less room than so many tokens loses its oldest messages, but for a system
 *     message; 0: it is refused instead
 */
public record ConversationOptions(int capacity, Kv kv, String exit, String skippedKv, boolean drafts, Thinking thinking,
    int answerRoom) {
  /** How many bits a number of K and V has; in the order of edgeloop.h. */
  public enum Kv {
    FLOAT32,
    FLOAT16,
    INT8,
    INT4
  }

  /** The model's own way, or one of two. */
  public enum Thinking {
    DEFAULT,
    ON,
    OFF
  }

  public static final ConversationOptions DEFAULT =
      new ConversationOptions(0, Kv.FLOAT16, "", "", true, Thinking.DEFAULT, 0);

  public ConversationOptions {
    if (capacity < 0) throw new IllegalArgumentException("capacity is " + capacity + ", wanted 0 or more");
    if (answerRoom < 0) throw new IllegalArgumentException("answerRoom is " + answerRoom + ", wanted 0 or more");
    Objects.requireNonNull(kv, "kv");
    Objects.requireNonNull(exit, "exit");
    Objects.requireNonNull(skippedKv, "skippedKv");
    Objects.requireNonNull(thinking, "thinking");
  }

  public ConversationOptions withCapacity(int tokens) {
    return new ConversationOptions(tokens, kv, exit, skippedKv, drafts, thinking, answerRoom);
  }

  public ConversationOptions withKv(Kv other) {
    return new ConversationOptions(capacity, other, exit, skippedKv, drafts, thinking, answerRoom);
  }

  public ConversationOptions withExit(String rule) {
    return new ConversationOptions(capacity, kv, rule, skippedKv, drafts, thinking, answerRoom);
  }

  public ConversationOptions withSkippedKv(String way) {
    return new ConversationOptions(capacity, kv, exit, way, drafts, thinking, answerRoom);
  }

  public ConversationOptions withDrafts(boolean wanted) {
    return new ConversationOptions(capacity, kv, exit, skippedKv, wanted, thinking, answerRoom);
  }

  public ConversationOptions withThinking(Thinking way) {
    return new ConversationOptions(capacity, kv, exit, skippedKv, drafts, way, answerRoom);
  }

  public ConversationOptions withAnswerRoom(int tokens) {
    return new ConversationOptions(capacity, kv, exit, skippedKv, drafts, thinking, tokens);
  }
}
