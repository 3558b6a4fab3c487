package edgeloop;

import java.nio.file.Path;

/**
 * A model.lanes file, mapped, with its threads. Conversations of one model may be had by several threads; what computes
 * takes turns.
 *
 * <p>After {@link #close} no conversation can be begun; those that are open go on, and with the last of them the memory
 * goes.
 */
public final class Model implements AutoCloseable {
  private final Object lock = new Object();
  private final ModelInfo info;
  private long handle;
  private boolean closed;
  private int users = 1; // this object, and each conversation

  private Model(long handle) {
    this.handle = handle;
    long[] numbers = Native.info(handle);
    info = new ModelInfo((int) numbers[0], (int) numbers[1], (int) numbers[2], (int) numbers[3], numbers[4],
        Utf8.text(Native.kernels(handle)));
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

  public Conversation conversation() {
    return conversation(ConversationOptions.DEFAULT);
  }

  /** A new, empty conversation; IllegalStateException behind {@link #close}. */
  public Conversation conversation(ConversationOptions options) {
    long model;
    synchronized (lock) {
      if (closed) throw new IllegalStateException("the model is closed");
      users++;
      model = handle;
    }
    try {
      return new Conversation(this, model, options);
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

  void release() {
    long last;
    synchronized (lock) {
      if (--users > 0) return;
      last = handle;
      handle = 0;
    }
    Native.close(last);
  }
}
