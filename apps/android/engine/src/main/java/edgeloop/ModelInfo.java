package edgeloop;

import java.util.List;

/**
 * What an open model is.
 *
 * @param name its name, or ""
 * @param depths how often the loop is run at most
 * @param vocabulary how many tokens there are
 * @param contextLength the most tokens of a text
 * @param threads that compute
 * @param fileBytes of the mapped file
 * @param kernels the name of those that are used
 * @param hasText its file has a tokenizer
 * @param turns which conversations it takes
 * @param system a system message may come first
 * @param thinking it can be asked to think first, or not to
 * @param ends the tokens that end a text
 * @param exits the exit rules that were calibrated, by the names that {@link ConversationOptions} takes
 */
public record ModelInfo(String name, int depths, int vocabulary, int contextLength, int threads, long fileBytes,
    String kernels, boolean hasText, Turns turns, boolean system, boolean thinking, List<Long> ends, List<String> exits) {
  /** In the order of edgeloop_context.h. */
  public enum Turns {
    /** It has no conversations, or a template that turns cannot say. */
    NONE,
    /** Any order of roles. */
    ANY,
    /** User and assistant in turn, the user first. */
    ALTERNATE
  }
}
