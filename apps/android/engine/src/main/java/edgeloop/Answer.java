package edgeloop;

/**
 * How an answer went.
 *
 * @param tokens that were given to the listener
 * @param finish why there were no more
 * @param promptNanoseconds that reading what was appended took, up to the first token
 * @param nanoseconds in all
 */
public record Answer(int tokens, Finish finish, long promptNanoseconds, long nanoseconds) {
  /** Why an answer ended. */
  public enum Finish {
    /** The model ended it. */
    END,
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
