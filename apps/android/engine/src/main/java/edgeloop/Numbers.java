package edgeloop;

import java.util.ArrayList;
import java.util.Collections;
import java.util.List;

/** Arrays of the library as lists. */
final class Numbers {
  private Numbers() {}

  /** Those from {@code first} on. */
  static List<Long> list(long[] numbers, int first) {
    List<Long> found = new ArrayList<>();
    for (int i = first; i < numbers.length; i++) found.add(numbers[i]);
    return Collections.unmodifiableList(found);
  }
}
