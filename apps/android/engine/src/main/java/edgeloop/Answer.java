package edgeloop;

/**
 * How an answer went.
 *
 * @param tokens of it
 * @param finish why there were no more
 * @param promptTokens that were run before it: what was cached is not
 * @param forgotten messages that made room
 * @param promptNanoseconds of those; the first token is chosen then
 * @param firstNanoseconds until the first text was there
 * @param nanoseconds in all
 */
public record Answer(int tokens, Finish finish, int promptTokens, int forgotten, long promptNanoseconds,
    long firstNanoseconds, long nanoseconds) {
  /** Why an answer ended; in the order of edgeloop_context.h. */
  public enum Finish {
    /** The model ended it. */
    END,
    /** A stop string came. */
    STOP_STRING,
    /** It has as many tokens as were asked for. */
    LENGTH,
    /** The conversation has no room for more. */
    CONTEXT,
    /** Somebody called {@link Conversation#stop}, or the listener wanted no more. */
    STOPPED
  }

  /** Tokens in a second, without the prompt; 0 where there were none. */
  public double tokensPerSecond() {
    long writing = nanoseconds - promptNanoseconds;
    return tokens > 1 && writing > 0 ? (tokens - 1) * 1e9 / writing : 0;
  }
}
