package edgeloop;

import java.nio.file.Path;
import java.util.List;

/**
 * The tokenizer and the turns of a bundle's text.lanes, for apps whose model another engine runs, ONNX Runtime or
 * ExecuTorch: no model is opened here. Several threads may use it at once.
 *
 * <p>After {@link #close} every call is an IllegalStateException; writers that are open go on. What the library refuses is an
 * EdgeloopException.
 */
public final class TextFile implements AutoCloseable {
  private final Users users = new Users("the text file", this::free); // of the handle: writers, calls
  private final List<Long> ends;
  private long handle;

  private TextFile(long handle) {
    this.handle = handle;
    try {
      ends = Numbers.list(Native.textEnds(handle), 0);
    } catch (Throwable e) {
      users.end();
      throw e;
    }
  }

  /** Opens {@code file}, a bundle's {@code text.lanes}; EdgeloopException for what it refuses. */
  public static TextFile open(Path file) {
    return new TextFile(Native.readText(Utf8.bytes(file.toString())));
  }

  /** The tokens that end a text. */
  public List<Long> ends() {
    return ends;
  }

  /** The tokens of {@code text}; {@code addSpecial}: with those that stand around a text, often a first one. */
  public long[] encode(String text, boolean addSpecial) {
    try (Users.Use use = users.begin()) {
      return Native.encode(handle, Utf8.bytes(text), addSpecial);
    }
  }

  /** The text of {@code ids}; {@code skipSpecial}: special tokens write nothing. */
  public String decode(long[] ids, boolean skipSpecial) {
    try (Users.Use use = users.begin()) {
      return Utf8.text(Native.decode(handle, ids, skipSpecial));
    }
  }

  /**
   * {@code messages} as the model's chat template writes them, with the opening of the assistant's turn: to be encoded
   * without special tokens, which the template writes itself.
   */
  public String render(List<Message> messages, ConversationOptions.Thinking thinking) {
    try (Users.Use use = users.begin()) {
      return Utf8.text(Native.renderText(handle, Message.bytes(messages), Model.renderFlags(thinking)));
    }
  }

  /** What writes an answer to {@code prompt}, up to the first of {@code stops}. */
  public TextWriter writer(long[] prompt, String... stops) {
    byte[][] given = new byte[stops.length][];
    for (int i = 0; i < given.length; i++) given[i] = Utf8.bytes(stops[i]);
    return users.given(() -> new TextWriter(users, Native.newWriter(handle, prompt, given)));
  }

  /** A second call does nothing. */
  @Override
  public void close() {
    users.close();
  }

  private void free() {
    Native.closeText(handle);
    handle = 0;
  }
}
