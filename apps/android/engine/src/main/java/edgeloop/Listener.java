package edgeloop;

/** Gets an answer as it is written. */
@FunctionalInterface
public interface Listener {
  /**
   * Called in the thread that called {@link Conversation#answer}; what it throws ends the answer, and comes out of it.
   *
   * @return false: no more
   */
  boolean on(Piece piece);
}
