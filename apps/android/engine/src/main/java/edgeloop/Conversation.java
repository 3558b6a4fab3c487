package edgeloop;

import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.Objects;
import java.util.concurrent.locks.ReentrantLock;
import java.util.function.Supplier;

/**
 * A text or a conversation, and how it goes on: what was appended or said is read, and {@link #answer} writes behind it.
 *
 * <p>Several threads may call it; calls take turns, but for {@link #stop}, which ends the answer that is being written.
 * {@link #close} from another thread stops it, too, and waits for it. Behind {@code close} every call is an
 * IllegalStateException. A listener may call {@code stop}, and nothing else of the conversation that calls it. What the
 * library refuses is an EdgeloopException, and changes nothing.
 */
public final class Conversation implements AutoCloseable {
  private final ReentrantLock turn = new ReentrantLock(true);
  private final Object gate = new Object(); // of what stop() reads
  private final Users model;
  private volatile boolean closing;
  private boolean answering;
  private boolean stopping;
  private long handle;

  /** Takes over a use of the model. */
  Conversation(Users model, long handle) {
    this.model = model;
    this.handle = handle;
  }

  /** Appends tokens, which the next answer reads first. */
  public Conversation append(long... ids) {
    call(() -> Native.append(handle, ids));
    return this;
  }

  /** Appends a text; the first one with what the tokenizer puts in front of texts. */
  public Conversation append(String text) {
    byte[] utf8 = Utf8.bytes(text);
    call(() -> Native.text(handle, utf8));
    return this;
  }

  /** Appends a message; an answer to one becomes the assistant's message by itself. */
  public Conversation say(String role, String content) {
    byte[] said = Utf8.bytes(content);
    byte[] by = Utf8.bytes(role);
    call(() -> Native.say(handle, by, said));
    return this;
  }

  /** The conversation is this; what it has in common with the one before is not read again. */
  public Conversation chat(List<Message> messages) {
    byte[][] bytes = Message.bytes(messages);
    call(() -> Native.chat(handle, bytes));
    return this;
  }

  /** Writes on, and gives {@code listener} each token; what was written is a part of the conversation afterwards. */
  public Answer answer(AnswerOptions options, Listener listener) {
    Objects.requireNonNull(listener, "listener");
    List<byte[]> stops = new ArrayList<>();
    for (String each : options.stops()) stops.add(Utf8.bytes(each));
    return get(() -> {
      synchronized (gate) {
        if (closing) throw closed();
        stopping = false;
        answering = true;
      }
      try {
        return answer(options, stops.toArray(new byte[0][]), listener);
      } finally {
        synchronized (gate) {
          answering = false;
        }
      }
    });
  }

  private Answer answer(AnswerOptions options, byte[][] stops, Listener listener) {
    Sampling s = options.sampling();
    for (;;) {
      long[] n = Native.answer(handle, options.maxTokens(), options.endless(), stops, s.temperature(), s.topK(), s.topP(),
          s.minP(), s.seed(), (utf8, token, depth, nanoseconds) ->
              listener.on(new Piece(Utf8.text(utf8), token, depth, nanoseconds)));
      Answer found =
          new Answer((int) n[0], Answer.Finish.values()[(int) n[1]], (int) n[2], (int) n[3], n[4], n[5], n[6]);
      // A stop that came when the answer before this one had just ended is not for this one.
      boolean stale = found.finish() == Answer.Finish.STOPPED && found.tokens() == 0;
      synchronized (gate) {
        if (!stale || stopping) return found;
      }
    }
  }

  /** Ends the answer that is being written, if one is; from any thread, and at the engine's next step. */
  public void stop() {
    synchronized (gate) {
      if (!answering) return;
      stopping = true;
      Native.stop(handle);
    }
  }

  /** Tokens that it has, with those that were appended and not read yet. */
  public int length() {
    return get(() -> (int) Native.length(handle)[0]);
  }

  /** All of its tokens. */
  public long[] ids() {
    return get(() -> Native.ids(handle));
  }

  public List<Message> messages() {
    return get(() -> {
      List<Message> found = new ArrayList<>();
      int count = (int) Native.length(handle)[1];
      for (int i = 0; i < count; i++) {
        byte[][] each = Native.message(handle, i);
        found.add(new Message(Utf8.text(each[0]), Utf8.text(each[1])));
      }
      return Collections.unmodifiableList(found);
    });
  }

  /** Goes back to its first {@code tokens} tokens; messages that are not whole any more go, too. */
  public void seek(int tokens) {
    call(() -> Native.seek(handle, tokens));
  }

  /** The last answer is forgotten, so that {@link #answer} gives another one: with another seed, or the same comes again. */
  public void again() {
    call(() -> Native.again(handle));
  }

  /** Another conversation that goes on from here; memory that both have is there once. */
  public Conversation fork() {
    return get(() -> {
      long other = Native.fork(handle);
      model.again();
      return new Conversation(model, other);
    });
  }

  /** Writes tokens, messages, K and V to {@code file}, whole or not at all: the file of {@code edgeloop run --session}. */
  public void save(Path file) {
    byte[] path = Utf8.bytes(file.toString());
    call(() -> Native.save(handle, path));
  }

  /** Is what {@link #save} wrote, by a conversation of the same model and options; empty where that fails. */
  public void load(Path file) {
    byte[] path = Utf8.bytes(file.toString());
    call(() -> Native.load(handle, path));
  }

  public Stats stats() {
    return get(() -> {
      long[] n = Native.stats(handle);
      return new Stats(n[0], n[1], n[2], n[3], n[4], n[5], n[6], Numbers.list(n, 7));
    });
  }

  /** Frees its memory; an answer that another thread is writing is stopped first. A second call does nothing. */
  @Override
  public void close() {
    if (turn.isHeldByCurrentThread()) throw inside();
    closing = true;
    stop();
    turn.lock();
    try {
      if (handle == 0) return;
      Native.freeContext(handle);
      handle = 0;
      model.end();
    } finally {
      turn.unlock();
    }
  }

  private void call(Runnable work) {
    get(() -> {
      work.run();
      return null;
    });
  }

  /** What {@code work} gives, which has the handle for itself. */
  private <T> T get(Supplier<T> work) {
    if (turn.isHeldByCurrentThread()) throw inside();
    turn.lock();
    try {
      if (handle == 0 || closing) throw closed();
      return work.get();
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
}
