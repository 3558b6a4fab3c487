package edgeloop;

import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/**
 * Reads a manifest, which may be a stranger's: objects become maps, arrays lists, numbers Double or, where they are whole
 * and fit, Long. Neither Java nor its library has a reader of JSON, and this module wants no other library.
 */
final class Json {
  private static final int DEEPEST = 64;
  private final String text;
  private int at;
  private int depth;

  private Json(String text) {
    this.text = text;
  }

  /** The value of {@code text}; IllegalArgumentException, with the place, for what is no JSON. */
  static Object read(String text) {
    Json json = new Json(text);
    Object value = json.value();
    json.blanks();
    if (json.at < text.length()) throw json.wrong("the end");
    return value;
  }

  private Object value() {
    blanks();
    if (at == text.length()) throw wrong("a value");
    switch (text.charAt(at)) {
      case '{':
        return object();
      case '[':
        return array();
      case '"':
        return string();
      case 't':
        return word("true", true);
      case 'f':
        return word("false", false);
      case 'n':
        return word("null", null);
      default:
        return number();
    }
  }

  private Map<String, Object> object() {
    Map<String, Object> found = new LinkedHashMap<>();
    enter();
    while (!closes('}', found.isEmpty())) {
      blanks();
      String name = string();
      expect(':');
      if (found.containsKey(name)) throw wrong("\"" + name + "\" only once");
      found.put(name, value());
    }
    depth--;
    return found;
  }

  private List<Object> array() {
    List<Object> found = new ArrayList<>();
    enter();
    while (!closes(']', found.isEmpty())) found.add(value());
    depth--;
    return found;
  }

  private void enter() {
    if (++depth > DEEPEST) throw wrong("at most " + DEEPEST + " levels");
    at++;
  }

  /** Is there no further one? Behind the first, a comma is passed. */
  private boolean closes(char end, boolean first) {
    blanks();
    if (at < text.length() && text.charAt(at) == end) {
      at++;
      return true;
    }
    if (!first) expect(',');
    return false;
  }

  private String string() {
    expect('"');
    StringBuilder found = new StringBuilder();
    for (;;) {
      if (at == text.length()) throw wrong("the end of a string");
      char c = text.charAt(at++);
      if (c == '"') return found.toString();
      if (c < ' ') throw wrong("no control character in a string");
      found.append(c == '\\' ? escaped() : c);
    }
  }

  private char escaped() {
    char c = at < text.length() ? text.charAt(at++) : 0;
    int plain = "\"\\/bfnrt".indexOf(c);
    if (plain >= 0) return "\"\\/\b\f\n\r\t".charAt(plain);
    if (c != 'u' || at + 4 > text.length()) throw wrong("an escape");
    int found = 0;
    for (int i = 0; i < 4; i++) {
      int digit = Character.digit(text.charAt(at++), 16);
      if (digit < 0) throw wrong("four hexadecimal digits");
      found = 16 * found + digit;
    }
    return (char) found;
  }

  private Object word(String word, Object value) {
    if (!text.startsWith(word, at)) throw wrong("a value");
    at += word.length();
    return value;
  }

  private Object number() {
    int start = at;
    while (at < text.length() && "+-.eE0123456789".indexOf(text.charAt(at)) >= 0) at++;
    String found = text.substring(start, at);
    try {
      if (found.matches("-?(0|[1-9]\\d{0,17})")) return Long.valueOf(found);
      if (found.matches("-?(0|[1-9]\\d*)(\\.\\d+)?([eE][-+]?\\d+)?")) return Double.valueOf(found);
    } catch (NumberFormatException e) {
      throw wrong("a number");
    }
    at = start;
    throw wrong("a value");
  }

  private void expect(char c) {
    blanks();
    if (at == text.length() || text.charAt(at) != c) throw wrong("'" + c + "'");
    at++;
  }

  private void blanks() {
    while (at < text.length() && " \t\r\n".indexOf(text.charAt(at)) >= 0) at++;
  }

  private IllegalArgumentException wrong(String wanted) {
    String found = at < text.length() ? "'" + text.charAt(at) + "'" : "the end";
    return new IllegalArgumentException("found " + found + " at character " + at + ", wanted " + wanted);
  }
}
