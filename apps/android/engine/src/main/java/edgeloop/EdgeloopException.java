package edgeloop;

import java.nio.charset.StandardCharsets;

/** What libedgeloop refused or could not do: its code, and its one line of text. Nothing else was changed. */
public final class EdgeloopException extends RuntimeException {
  private static final long serialVersionUID = 1;

  /** The codes of edgeloop.h, in its order from 1 on. */
  public enum Code {
    /** A file cannot be opened, read or written. */
    FILE,
    /** A file is not what it should be: of another version, truncated or altered. */
    FORMAT,
    /** An argument is not what it may be. */
    USAGE,
    /** There is no room for it. */
    MEMORY,
    /** It was stopped. */
    STOPPED,
    /** A code that this class does not know. */
    OTHER
  }

  private final Code code;

  EdgeloopException(Code code, String line) {
    super(line);
    this.code = code;
  }

  /** Called by the library, whose lines are UTF-8. */
  EdgeloopException(int code, byte[] line) {
    this(code > 0 && code < Code.OTHER.ordinal() + 1 ? Code.values()[code - 1] : Code.OTHER,
        new String(line, StandardCharsets.UTF_8));
  }

  public Code code() {
    return code;
  }
}
