package edgeloop;

/**
 * An answer that comes token by token, as whole characters: together, what follows the prompt's text in that of both.
 * Special tokens write nothing. What may become a stop string is held back, and nothing follows one.
 */
public final class TextWriter implements AutoCloseable {
  private final Users text;
  private long handle;
  private boolean stopped;

  /** Takes over a use of the text. */
  TextWriter(Users text, long handle) {
    this.text = text;
    this.handle = handle;
  }

  /** What {@code token} makes certain: whole characters, or "" where nothing is. */
  public synchronized String push(long token) {
    byte[][] found = new byte[1][];
    stopped = Native.push(open(), token, found);
    return Utf8.text(found[0]);
  }

  /** Has a stop string come? */
  public synchronized boolean stopped() {
    return stopped;
  }

  /** What was held back, at the end of an answer. */
  public synchronized String end() {
    return Utf8.text(Native.endWriter(open()));
  }

  /** A second call does nothing. */
  @Override
  public synchronized void close() {
    if (handle == 0) return;
    Native.freeWriter(handle);
    handle = 0;
    text.end();
  }

  private long open() {
    if (handle == 0) throw new IllegalStateException("the writer is closed");
    return handle;
  }
}
