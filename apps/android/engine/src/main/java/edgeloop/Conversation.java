package edgeloop;

import java.util.Objects;
import java.util.concurrent.locks.ReentrantLock;

/**
 * One text, and how it goes on: what was appended is read, and {@link #answer} writes behind it.
 *
 * <p>Several threads may call it; calls take turns, but for {@link #stop}, which ends the answer that is being written.
 * {@link #close} from another thread stops it, too, and waits for it. Behind {@code close} every call is an
 * IllegalStateException. A listener may call {@code stop}, and nothing else of the conversation that calls it.
 */
public final class Conversation implements AutoCloseable {
  private final ReentrantLock turn = new ReentrantLock(true);
  private final Object gate = new Object(); // of `handle`, for whoever has no turn
  private final Model model;
  private volatile boolean closing;
  private boolean answering; // within `gate`
  private long handle;

  Conversation(Model model, long nativeModel, ConversationOptions options) {
    this.model = model;
    handle = Native.newConversation(
        nativeModel, options.capacity(), options.kv().ordinal(), Utf8.bytes(options.exit()));
    try {
      sampleBy(options.sampling());
    } catch (Throwable e) {
      Native.freeConversation(handle);
      throw e;
    }
  }

  /** How tokens are chosen from now on. */
  public void sample(Sampling sampling) {
    try (Turn ignored = new Turn()) {
      sampleBy(sampling);
    }
  }

  private void sampleBy(Sampling s) {
    Native.sample(handle, s.temperature(), s.topK(), s.topP(), s.minP(), s.seed());
  }

  /** Appends tokens, which the next answer reads first; EdgeloopException where there is no room, or no such token. */
  public Conversation append(long... ids) {
    try (Turn ignored = new Turn()) {
      Native.append(handle, ids);
    }
    return this;
  }

  /** Tokens that it has, with those that were appended and not read yet. */
  public int length() {
    try (Turn ignored = new Turn()) {
      return Native.length(handle);
    }
  }

  /** Goes back to its first {@code tokens} tokens: to answer anew, or to go on differently. */
  public void seek(int tokens) {
    try (Turn ignored = new Turn()) {
      Native.seek(handle, tokens);
    }
  }

  /** Writes on, and gives {@code listener} each token; what was written is a part of the conversation afterwards. */
  public Answer answer(AnswerOptions options, Listener listener) {
    Objects.requireNonNull(listener, "listener");
    try (Turn ignored = new Turn()) {
      synchronized (gate) {
        if (closing) throw closed();
        Native.begin(handle);
        answering = true;
      }
      try {
        long[] found = Native.answer(handle, options.maxTokens(), options.ends(),
            (token, depth, nanoseconds) -> listener.on(new Piece(token, depth, nanoseconds)));
        return new Answer((int) found[0], Answer.Finish.values()[(int) found[1]], found[2], found[3]);
      } finally {
        synchronized (gate) {
          answering = false;
        }
      }
    }
  }

  /** Ends the answer that is being written, if one is; from any thread, and at once. */
  public void stop() {
    synchronized (gate) {
      if (answering) Native.stop(handle);
    }
  }

  public Stats stats() {
    try (Turn ignored = new Turn()) {
      long[] found = Native.stats(handle);
      return new Stats(found[0], found[1], found[2]);
    }
  }

  /** Frees its memory; an answer that another thread is writing is stopped first. A second call does nothing. */
  @Override
  public void close() {
    if (turn.isHeldByCurrentThread()) throw inside();
    closing = true;
    stop();
    turn.lock();
    try {
      long last;
      synchronized (gate) {
        last = handle;
        handle = 0;
      }
      if (last == 0) return;
      Native.freeConversation(last);
      model.release();
    } finally {
      turn.unlock();
    }
  }

  private static IllegalStateException closed() {
    return new IllegalStateException("the conversation is closed");
  }

  private static IllegalStateException inside() {
    return new IllegalStateException("a listener may only stop the conversation that calls it");
  }

  /** The right to call the library with the handle, while there is one. */
  private final class Turn implements AutoCloseable {
    Turn() {
      if (turn.isHeldByCurrentThread()) throw inside();
      turn.lock();
      if (handle == 0 || closing) {
        turn.unlock();
        throw closed();
      }
    }

    @Override
    public void close() {
      turn.unlock();
    }
  }
}
