package edgeloop;

import java.lang.reflect.InvocationTargetException;
import java.nio.file.Path;
import java.util.Arrays;

/**
 * What tests/apps/test_app_hosts.py runs: an engine, a bundle, room for how many tokens, how many depths those of an
 * answer run (0: all), how many to write, where profiles go (-: nowhere), and the tokens of a prompt. It writes the answer,
 * then the one behind the prompt's last token given again, then the one behind a prompt that came token by token.
 */
final class LoopCheck {
  public static void main(String[] words) throws Exception {
    int depths = Integer.parseInt(words[3]);
    int count = Integer.parseInt(words[4]);
    int[] prompt = Arrays.stream(words).skip(6).mapToInt(Integer::parseInt).toArray();
    try (GreedyLoop<?> loop = opened(words[0], Path.of(words[1]), Integer.parseInt(words[2]), words[5])) {
      answer(loop, loop.prompt(prompt), depths, count);
      loop.back(prompt.length - 1);
      int[] last = {prompt[prompt.length - 1]};
      answer(loop, loop.prompt(last), depths, count);
      loop.back(0);
      for (int i = 0; i + 1 < prompt.length; i++) loop.prompt(prompt[i]);
      answer(loop, loop.prompt(last), depths, count);
      if (depths > 0) loop.prompt(last); // behind tokens that left early
    } catch (IllegalArgumentException | IllegalStateException e) {
      System.out.println(e.getMessage());
    }
  }

  /** By name, since each loop wants classes that the other goes without. */
  private static GreedyLoop<?> opened(String name, Path bundle, int capacity, String traces) throws Exception {
    Class<?> loop = Class.forName("edgeloop." + name);
    try {
      if (name.equals("PteLoop"))
        return (GreedyLoop<?>) loop.getConstructor(Path.class, int.class, int.class).newInstance(bundle, capacity, 1);
      Path trace = traces.equals("-") ? null : Path.of(traces);
      return (GreedyLoop<?>)
          loop.getConstructor(Path.class, int.class, int.class, Path.class).newInstance(bundle, capacity, 1, trace);
    } catch (InvocationTargetException e) {
      throw (Exception) e.getCause();
    }
  }

  private static void answer(GreedyLoop<?> loop, int token, int depths, int count) throws Exception {
    StringBuilder line = new StringBuilder();
    for (int i = 0; i < count; i++) {
      line.append(token).append(' ');
      if (loop.ends(token)) break;
      if (i + 1 < count) token = loop.step(token, depths == 0 ? loop.depths() : depths);
    }
    System.out.println(line.toString().trim());
  }
}
