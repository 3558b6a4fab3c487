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
  private final Users users = new Users("the model", this::free); // of the handles: conversations, calls
  private final ModelInfo info;
  private long handle;
  private long text; // 0: the file has no tokenizer

  private Model(long handle) {
    this.handle = handle;
    try {
      text = Native.openText(handle);
      info = read();
    } catch (Throwable e) {
      users.end();
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
    try (Users.Use use = users.begin()) {
      return Native.encode(text(), Utf8.bytes(text), addSpecial);
    }
  }

  /** The text of {@code ids}; {@code skipSpecial}: special tokens write nothing. */
  public String decode(long[] ids, boolean skipSpecial) {
    try (Users.Use use = users.begin()) {
      return Utf8.text(Native.decode(text(), ids, skipSpecial));
    }
  }

  /** {@code messages} as the model's chat template writes them, with the opening of the assistant's turn. */
  public String render(List<Message> messages, ConversationOptions.Thinking thinking) {
    try (Users.Use use = users.begin()) {
      return Utf8.text(Native.render(handle, Message.bytes(messages), renderFlags(thinking)));
    }
  }

  /** With the opening of an answer: EL_RENDER_ANSWER. */
  static int renderFlags(ConversationOptions.Thinking thinking) {
    return 1 | thinkFlag(thinking);
  }

  static int thinkFlag(ConversationOptions.Thinking thinking) {
    return 2 * thinking.ordinal(); // EL_RENDER_THINK, EL_RENDER_NO_THINK
  }

  public Conversation conversation() {
    return conversation(ConversationOptions.DEFAULT);
  }

  /** A new, empty conversation; IllegalStateException behind {@link #close}. */
  public Conversation conversation(ConversationOptions options) {
    return users.given(() -> new Conversation(users, Native.newContext(handle, text, options.capacity(),
        options.kv().ordinal(), options.drafts(), thinkFlag(options.thinking()), options.answerRoom(),
        Utf8.bytes(options.exit()), Utf8.bytes(options.skippedKv()))));
  }

  /** A second call does nothing. */
  @Override
  public void close() {
    users.close();
  }

  private void free() {
    Native.closeText(text);
    Native.close(handle);
    handle = text = 0;
  }

  private long text() {
    if (text == 0) throw new IllegalStateException("the model's file has no tokenizer; export it again with one");
    return text;
  }
}
