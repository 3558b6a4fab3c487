package edgeloop;

import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;

/**
 * A model.lanes file, mapped, with its threads. Conversations of one model may be had by several threads; what computes
 * takes turns.
 *
 * <p>After {@link #close} no conversation can be begun, and no text be encoded; conversations that are open go on, and with
 * the last of them the memory goes.
 */
public final class Model implements AutoCloseable {
  private final Object lock = new Object();
  private final ModelInfo info;
  private long handle;
  private long text; // 0: the file has no tokenizer
  private boolean closed;
  private int users = 1; // this object, each conversation, each call

  private Model(long handle) {
    this.handle = handle;
    try {
      text = Native.openText(handle);
      info = read();
    } catch (Throwable e) {
      release();
      throw e;
    }
  }

  private ModelInfo read() {
    long[] n = Native.info(handle);
    List<String> names = new ArrayList<>();
    for (byte[] each : Native.names(handle)) names.add(Utf8.text(each));
    return new ModelInfo(names.get(1), (int) n[0], (int) n[1], (int) n[2], (int) n[3], n[4], names.get(0), text != 0,
        ModelInfo.Turns.values()[(int) n[5]], n[6] != 0, n[7] != 0, Numbers.list(Native.ends(handle), 0),
        Collections.unmodifiableList(names.subList(2, names.size())));
  }

  /** Opens {@code file}, a bundle's {@code native/model.lanes}; EdgeloopException for what it refuses. */
  public static Model open(Path file) {
    return open(file, ModelOptions.DEFAULT);
  }

  public static Model open(Path file, ModelOptions options) {
    return new Model(Native.open(Utf8.bytes(file.toString()), options.threads(), options.floatActivations(),
        Utf8.bytes(options.kernels())));
  }

  public ModelInfo info() {
    return info;
  }

  /** The tokens of {@code text}; {@code addSpecial}: with those that stand around a text, often a first one. */
  public long[] encode(String text, boolean addSpecial) {
    try (Use use = new Use()) {
      return Native.encode(use.text(), Utf8.bytes(text), addSpecial);
    }
  }

  /** The text of {@code ids}; {@code skipSpecial}: special tokens write nothing. */
  public String decode(long[] ids, boolean skipSpecial) {
    try (Use use = new Use()) {
      return Utf8.text(Native.decode(use.text(), ids, skipSpecial));
    }
  }

  /** {@code messages} as the model's chat template writes them, with the opening of the assistant's turn. */
  public String render(List<Message> messages, ConversationOptions.Thinking thinking) {
    try (Use use = new Use()) {
      return Utf8.text(Native.render(use.model(), Message.bytes(messages), 1 | thinkFlag(thinking)));
    }
  }

  static int thinkFlag(ConversationOptions.Thinking thinking) {
    return 2 * thinking.ordinal(); // EL_RENDER_THINK, EL_RENDER_NO_THINK
  }

  public Conversation conversation() {
    return conversation(ConversationOptions.DEFAULT);
  }

  /** A new, empty conversation; IllegalStateException behind {@link #close}. */
  public Conversation conversation(ConversationOptions options) {
    Use use = new Use();
    try {
      return new Conversation(this, Native.newContext(use.model(), text, options.capacity(), options.kv().ordinal(),
          options.drafts(), thinkFlag(options.thinking()), options.answerRoom(), Utf8.bytes(options.exit()),
          Utf8.bytes(options.skippedKv())));
    } catch (Throwable e) {
      release();
      throw e;
    }
  }

  /** A second call does nothing. */
  @Override
  public void close() {
    synchronized (lock) {
      if (closed) return;
      closed = true;
    }
    release();
  }

  /** For a conversation that another one becomes. */
  void retain() {
    synchronized (lock) {
      users++;
    }
  }

  void release() {
    synchronized (lock) {
      if (--users > 0) return;
    }
    Native.closeText(text);
    Native.close(handle);
    handle = text = 0;
  }

  /** The right to use the handles, until it is closed or a conversation takes it over. */
  private final class Use implements AutoCloseable {
    Use() {
      synchronized (lock) {
        if (closed) throw new IllegalStateException("the model is closed");
        users++;
      }
    }

    long model() {
      return handle;
    }

    long text() {
      if (text == 0) throw new IllegalStateException("the model's file has no tokenizer; export it again with one");
      return text;
    }

    @Override
    public void close() {
      release();
    }
  }
}
