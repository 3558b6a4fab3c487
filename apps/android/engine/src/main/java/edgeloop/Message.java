package edgeloop;

import java.util.Collection;
import java.util.Objects;

/**
 * A message of a conversation.
 *
 * @param role {@link #SYSTEM}, {@link #USER} or {@link #ASSISTANT}
 * @param content its text
 */
public record Message(String role, String content) {
  public static final String SYSTEM = "system";
  public static final String USER = "user";
  public static final String ASSISTANT = "assistant";

  public Message {
    Objects.requireNonNull(role, "role");
    Objects.requireNonNull(content, "content");
  }

  /** A role, a text, a role … as the library takes them. */
  static byte[][] bytes(Collection<Message> messages) {
    byte[][] found = new byte[2 * messages.size()][];
    int at = 0;
    for (Message each : messages) {
      found[at++] = Utf8.bytes(each.role);
      found[at++] = Utf8.bytes(each.content);
    }
    return found;
  }
}
