package edgeloop;

import java.util.function.Supplier;

/** Who uses handles of the library; the last of them lets go of them. */
final class Users {
  /** A use, until it is closed. */
  interface Use extends AutoCloseable {
    @Override
    void close();
  }

  private final String what;
  private final Runnable free;
  private boolean closed;
  private int count = 1; // the object that has the handles, and each use

  /** {@code what}: the object, as it says that it is closed; {@code free}: what the last one does. */
  Users(String what, Runnable free) {
    this.what = what;
    this.free = free;
  }

  /** The right to use the handles, which may be handed on; IllegalStateException behind {@link #close}. */
  Use begin() {
    synchronized (this) {
      if (closed) throw new IllegalStateException(what + " is closed");
      count++;
    }
    return this::end;
  }

  /** What {@code make} makes, which has a use of its own and ends it; IllegalStateException behind {@link #close}. */
  <T> T given(Supplier<T> make) {
    begin();
    try {
      return make.get();
    } catch (Throwable e) {
      end();
      throw e;
    }
  }

  /** One more, for a use that becomes two. */
  synchronized void again() {
    count++;
  }

  void end() {
    synchronized (this) {
      if (--count > 0) return;
    }
    free.run();
  }

  /** The object itself uses them no more; a second call does nothing. */
  void close() {
    synchronized (this) {
      if (closed) return;
      closed = true;
    }
    end();
  }
}
