package edgeloop;

import java.io.BufferedReader;
import java.io.FileDescriptor;
import java.io.FileOutputStream;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.nio.file.Paths;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Base64;
import java.util.List;
import java.util.stream.Collectors;

/**
 * What tests/apps/test_android_text.py runs on a desktop's JVM: a text.lanes, and lines of questions about it. Texts are in
 * Base64, ids have commas between them.
 */
final class TextCheck {
  private TextCheck() {}

  public static void main(String[] words) throws Exception {
    System.setOut(new PrintStream(new FileOutputStream(FileDescriptor.out), true, "UTF-8"));
    Path file = Paths.get(words[0]);
    BufferedReader lines = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
    try (TextFile text = TextFile.open(file)) {
      System.out.println(text.ends());
      for (String line; (line = lines.readLine()) != null; ) {
        String[] w = line.split(" ", -1);
        System.out.println(answer(text, file, w));
      }
    }
  }

  private static String answer(TextFile text, Path file, String[] w) {
    switch (w[0]) {
      case "encode":
        return joined(text.encode(of(w[2]), w[1].equals("special")));
      case "decode":
        return in(text.decode(ids(w[2]), w[1].equals("bare")));
      case "render":
        List<Message> said = new ArrayList<>();
        for (int i = 2; i < w.length; i += 2) said.add(new Message(w[i], of(w[i + 1])));
        try {
          return in(text.render(said, ConversationOptions.Thinking.valueOf(w[1])));
        } catch (EdgeloopException e) {
          return e.code().name();
        }
      case "write":
        return written(text, w);
      case "wanted":
        return (w[1].equals("ONNX") ? BundleStore.ONNX : BundleStore.EXECUTORCH).test(w[2]) ? w[2] : "";
      default:
        return refused(file, w[0]);
    }
  }

  /** The pieces of the tokens {@code w[2]} behind those in {@code w[1]}, up to a stop string, and whether one came. */
  private static String written(TextFile text, String[] w) {
    String[] stops = Arrays.stream(w).skip(3).map(TextCheck::of).toArray(String[]::new);
    List<String> pieces = new ArrayList<>();
    try (TextWriter writer = text.writer(ids(w[1]), stops)) {
      for (long id : ids(w[2])) {
        pieces.add(in(writer.push(id)));
        if (writer.stopped()) break;
      }
      pieces.add(in(writer.end()));
      return String.join(",", pieces) + " " + writer.stopped();
    }
  }

  /** What is wrong, as its exception says it. */
  private static String refused(Path file, String what) {
    TextFile text = TextFile.open(file);
    TextWriter writer = text.writer(new long[0]);
    try {
      switch (what) {
        case "missing":
          return "" + TextFile.open(file.resolveSibling("none.lanes"));
        case "other":
          return "" + TextFile.open(file.resolveSibling("tokenizer.json"));
        case "half":
          return "" + text.encode("\ud83d", true).length;
        case "nobody":
          return text.render(List.of(new Message("nobody", "x")), ConversationOptions.Thinking.DEFAULT);
        case "closed":
          text.close();
          text.close();
          return writer.push(1) + text.encode("x", true).length;
        case "written":
          writer.close();
          writer.close();
          return writer.push(1);
        default:
          throw new IllegalArgumentException(what);
      }
    } catch (EdgeloopException e) {
      return e.code() + " " + e.getMessage();
    } catch (IllegalStateException | IllegalArgumentException e) {
      return e.getMessage();
    } finally {
      writer.close();
      text.close();
    }
  }

  private static String joined(long[] ids) {
    return Arrays.stream(ids).mapToObj(Long::toString).collect(Collectors.joining(","));
  }

  private static long[] ids(String joined) {
    return joined.isEmpty() ? new long[0] : Arrays.stream(joined.split(",")).mapToLong(Long::parseLong).toArray();
  }

  private static String of(String base64) {
    return new String(Base64.getDecoder().decode(base64), StandardCharsets.UTF_8);
  }

  private static String in(String text) {
    return Base64.getEncoder().encodeToString(text.getBytes(StandardCharsets.UTF_8));
  }
}
