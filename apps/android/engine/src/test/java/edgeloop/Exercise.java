package edgeloop;

import java.io.BufferedReader;
import java.io.FileDescriptor;
import java.io.FileOutputStream;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.net.URL;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.Paths;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import java.util.stream.Collectors;

/**
 * What tests/apps/test_android.py runs on a desktop's JVM: each part writes lines, which it holds against Python's.
 */
final class Exercise {
  private Exercise() {}

  /** Work that may throw. */
  interface Work {
    void run() throws Exception;
  }

  public static void main(String[] words) throws Exception {
    System.setOut(new PrintStream(new FileOutputStream(FileDescriptor.out), true, "UTF-8"));
    Path file = Paths.get(words[1]);
    switch (words[0]) {
      case "answers":
        answers(file);
        break;
      case "turns":
        turns(file, Paths.get(words[2]));
        break;
      case "rules":
        rules(file);
        break;
      case "crowd":
        crowd(file);
        break;
      case "install":
        new BundleStore(file).clean();
        for (String base : Arrays.copyOfRange(words, 2, words.length)) install(file, new URL(base));
        new BundleStore(file).clean();
        break;
      case "signed":
        signed(file, words);
        break;
      case "update":
        for (int i = 3; i < words.length; i++) update(file, words[2], words[i]);
        break;
      case "overhead":
        overhead(file);
        break;
      default:
        throw new IllegalArgumentException(words[0]);
    }
  }

  /**
   * Of each line "exit|skipped|kv|temperature|topK|topP|minP|seed|most|stop|prompt" the tokens, their depths, why the answer
   * ended, how long the conversation is, and the text.
   */
  private static void answers(Path file) throws Exception {
    BufferedReader lines = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
    try (Model model = Model.open(file, ModelOptions.threads(2))) {
      for (String line; (line = lines.readLine()) != null; ) {
        String[] w = line.split("\\|", -1);
        Sampling sampling = new Sampling(Double.parseDouble(w[3]), Integer.parseInt(w[4]), Double.parseDouble(w[5]),
            Double.parseDouble(w[6]), Long.parseUnsignedLong(w[7]));
        AnswerOptions wanted = AnswerOptions.atMost(Integer.parseInt(w[8])).withSampling(sampling);
        ConversationOptions options = ConversationOptions.DEFAULT.withExit(w[0]).withSkippedKv(w[1])
            .withKv(ConversationOptions.Kv.valueOf(w[2]));
        try (Conversation conversation = model.conversation(options)) {
          conversation.append(w[10]);
          List<Piece> pieces = new ArrayList<>();
          Answer answer = conversation.answer(w[9].isEmpty() ? wanted : wanted.withStops(w[9]), pieces::add);
          System.out.println(joined(pieces) + "|" + pieces.stream().map(p -> "" + p.depth()).collect(Collectors.joining(","))
              + "|" + answer.finish() + "|" + conversation.length() + "|" + text(pieces));
        }
      }
    }
  }

  private static String joined(List<Piece> pieces) {
    return pieces.stream().map(p -> "" + p.token()).collect(Collectors.joining(","));
  }

  private static String text(List<Piece> pieces) {
    return pieces.stream().map(Piece::text).collect(Collectors.joining()).replace("\n", "\\n");
  }

  /** A conversation of turns, saved, loaded, forked, gone back in and answered anew. */
  private static void turns(Path file, Path saved) throws Exception {
    try (Model model = Model.open(file); Conversation conversation = model.conversation()) {
      ModelInfo info = model.info();
      System.out.println("info: " + info.depths() + " " + info.vocabulary() + " " + info.contextLength() + " "
          + info.hasText() + " " + info.turns() + " " + info.ends());
      String smile = "A caf\u00e9 \ud83d\ude42\u0000 \u6f22";
      System.out.println("encoded: " + Arrays.toString(model.encode(smile, false)));
      System.out.println("decoded: " + smile.equals(model.decode(model.encode(smile, false), false)));
      List<Message> one = Arrays.asList(new Message(Message.USER, "Tell me a tale."));
      String rendered = model.render(one, ConversationOptions.Thinking.DEFAULT);
      System.out.println("rendered: " + Arrays.toString(model.encode(rendered, false)));
      AnswerOptions options = AnswerOptions.atMost(24);
      conversation.say(Message.USER, "Tell me a tale.");
      List<Piece> pieces = new ArrayList<>();
      conversation.answer(options, pieces::add);
      System.out.println("first: " + text(pieces));
      conversation.save(saved);
      conversation.say(Message.USER, "And then?");
      List<Piece> second = new ArrayList<>();
      conversation.answer(options, second::add);
      System.out.println("second: " + text(second));
      System.out.println("messages: " + conversation.messages().stream().map(Message::role).collect(Collectors.joining(" "))
          + " " + (conversation.ids().length == conversation.length()));
      try (Conversation loaded = model.conversation(); Conversation fork = loaded(loaded, saved)) {
        for (Conversation each : Arrays.asList(loaded, fork)) {
          List<Piece> same = new ArrayList<>();
          each.say(Message.USER, "And then?").answer(options, same::add);
          System.out.println("the same: " + joined(same).equals(joined(second)));
        }
        System.out.println("shared: " + (fork.stats().sharedBytes() > 0));
      }
      conversation.again();
      List<Piece> other = new ArrayList<>();
      conversation.answer(options.withSampling(Sampling.at(1.5, 11)), other::add);
      System.out.println("another: " + !joined(other).equals(joined(second)));
      Stats stats = conversation.stats();
      System.out.println("stats: " + (stats.tokens() == conversation.length()) + " " + (stats.kvBytes() > 0) + " "
          + (stats.exits().stream().mapToLong(Long::longValue).sum() == stats.generated()) + " " + stats.meanDepth());
      conversation.chat(one);
      List<Piece> anew = new ArrayList<>();
      conversation.answer(options, anew::add);
      System.out.println("chat: " + joined(anew).equals(joined(pieces)));
    }
  }

  private static Conversation loaded(Conversation into, Path saved) {
    into.load(saved);
    return into.fork();
  }

  /** Line by line, "name: what was thrown", or what a rule of the API comes to. */
  private static void rules(Path file) throws Exception {
    refused("no file", () -> Model.open(Paths.get(file + ".none")));
    refused("no model", () -> Model.open(file.resolveSibling("../tokenizer.json")));
    refused("no kernels", () -> Model.open(file, new ModelOptions(0, false, "sse9")));
    refused("half a character", () -> Model.open(file, new ModelOptions(0, false, "\ud83d")));
    refused("a smile", () -> Model.open(file, new ModelOptions(0, false, "\ud83d\ude42")));
    refused("a zero", () -> Model.open(file, new ModelOptions(0, false, "avx\0two")));
    Model model = Model.open(file);
    refused("no exit", () -> model.conversation(ConversationOptions.DEFAULT.withExit("sometimes")));
    refused("depths", () -> model.conversation(ConversationOptions.DEFAULT.withExit("depth:9")));
    refused("capacity", () -> model.conversation(ConversationOptions.DEFAULT.withCapacity(100_000)));
    Conversation conversation = model.conversation(ConversationOptions.DEFAULT.withCapacity(16));
    refused("nothing", () -> conversation.answer(AnswerOptions.atMost(1), piece -> true));
    refused("no such token", () -> conversation.append(1, 1L << 40));
    refused("no such role", () -> conversation.say("nobody", "Hello"));
    refused("no saved file", () -> conversation.load(file));
    conversation.append(20, 30, 41, 59);
    refused("temperature", () -> conversation.answer(AnswerOptions.atMost(1).withSampling(Sampling.at(-1, 0)), piece -> true));
    List<Piece> pieces = new ArrayList<>();
    Answer answer = conversation.answer(AnswerOptions.DEFAULT.withEndless(true), pieces::add);
    System.out.println("full: " + answer.finish() + " " + conversation.length());
    conversation.seek(4);
    List<Piece> again = new ArrayList<>();
    Answer stopped = conversation.answer(AnswerOptions.DEFAULT, piece -> again.add(piece) && again.size() < 3);
    System.out.println("again: " + joined(pieces).startsWith(joined(again)) + " " + stopped.finish() + " " + again.size());
    conversation.seek(4);
    refused("thrown", () -> conversation.answer(AnswerOptions.atMost(5), piece -> {
      throw new IllegalArgumentException("the listener's own");
    }));
    refused("inside", () -> conversation.answer(AnswerOptions.atMost(5), piece -> conversation.length() > 0));
    refused("close inside", () -> conversation.answer(AnswerOptions.atMost(5), piece -> {
      conversation.close();
      return true;
    }));
    conversation.seek(4);
    Answer own = conversation.answer(AnswerOptions.atMost(5), piece -> {
      conversation.stop();
      return true;
    });
    System.out.println("stop inside: " + own.finish() + " " + own.tokens());
    conversation.stop();
    conversation.seek(4);
    System.out.println("stop before: " + conversation.answer(AnswerOptions.atMost(5), piece -> true).finish());
    stopFromAnotherThread(model);
    model.close();
    model.close();
    refused("closed model", model::conversation);
    refused("closed text", () -> model.encode("a", false));
    System.out.println("open still: " + conversation.length());
    conversation.close();
    conversation.close();
    conversation.stop();
    refused("closed", conversation::length);
  }

  private static void stopFromAnotherThread(Model model) throws Exception {
    try (Conversation conversation = model.conversation()) {
      conversation.append(20, 30, 41, 59);
      CountDownLatch begun = new CountDownLatch(1);
      Thread other = new Thread(() -> {
        try {
          begun.await();
        } catch (InterruptedException e) {
          return;
        }
        conversation.close();
      });
      other.start();
      // Endless but for the other thread, which closes the conversation that is answering.
      do {
        try {
          conversation.answer(AnswerOptions.atMost(400).withEndless(true), piece -> {
            begun.countDown();
            return true;
          });
          conversation.seek(4);
        } catch (IllegalStateException e) {
          System.out.println("closed by another: " + e.getMessage());
          break;
        }
      } while (true);
      other.join();
    }
  }

  private static void refused(String name, Work work) {
    try {
      work.run();
    } catch (EdgeloopException e) {
      System.out.println(name + ": " + e.code() + " " + e.getMessage());
    } catch (Exception e) {
      System.out.println(name + ": " + e.getClass().getSimpleName() + " " + e.getMessage());
    }
  }

  /** A hundred conversations from four threads, with four models: what memory and threads come to, and what was said. */
  private static void crowd(Path file) throws Exception {
    long[] prompt = new long[200];
    for (int i = 0; i < prompt.length; i++) prompt[i] = 5 + (i * 37) % 4000;
    int before = 0;
    long memory = 0;
    List<String> said = new ArrayList<>();
    for (int round = 0; round < 4; round++) {
      try (Model model = Model.open(file, ModelOptions.threads(3))) {
        ExecutorService pool = Executors.newFixedThreadPool(4);
        List<Future<String>> found = new ArrayList<>();
        for (int i = 0; i < 25; i++) found.add(pool.submit(() -> one(model, prompt)));
        for (Future<String> each : found) said.add(each.get());
        pool.shutdown();
        pool.awaitTermination(1, TimeUnit.MINUTES);
      }
      if (round == 0) {
        memory = resident();
        before = threads();
      }
    }
    System.out.println("said: " + said.size() + " " + said.stream().distinct().collect(Collectors.joining(" ")));
    System.out.println("grown: " + (resident() - memory));
    System.out.println("threads: " + (threads() - before));
  }

  private static String one(Model model, long[] prompt) {
    try (Conversation conversation = model.conversation()) {
      conversation.append(prompt);
      List<Piece> pieces = new ArrayList<>();
      conversation.answer(AnswerOptions.atMost(4).withEndless(true), pieces::add);
      return joined(pieces);
    }
  }

  private static long resident() throws IOException {
    System.gc();
    for (String line : Files.readAllLines(Paths.get("/proc/self/status"))) {
      if (line.startsWith("VmRSS")) return 1024 * Long.parseLong(line.replaceAll("\\D", ""));
    }
    throw new IOException("no VmRSS");
  }

  private static int threads() throws IOException {
    try (var all = Files.list(Paths.get("/proc/self/task"))) {
      return (int) all.count();
    }
  }

  /** Installs what is at {@code base}: what came of it, how far it got, and what is current then. */
  private static void install(Path root, URL base) throws Exception {
    BundleStore store = new BundleStore(root);
    long[] last = new long[2];
    String name = Paths.get(base.getPath()).getFileName().toString();
    refused(name, () -> {
      store.install(base, BundleStore.NATIVE, (done, bytes) -> {
        if (done < last[0] && !name.contains("again")) throw new IllegalStateException("progress goes back");
        last[0] = done;
        last[1] = bytes;
      });
      System.out.println(name + ": " + last[0] + " of " + last[1]);
    });
    System.out.println("current: " + store.current().map(root::relativize).map(Path::toString).orElse("none"));
  }

  /** Installs what only {@code words[2]} may have signed, a key's text in a file, from each address after it. */
  private static void signed(Path root, String[] words) throws Exception {
    TrustedKey key = TrustedKey.of(new String(Files.readAllBytes(Paths.get(words[2])), StandardCharsets.UTF_8));
    BundleStore store = new BundleStore(root, key);
    for (String base : Arrays.copyOfRange(words, 3, words.length)) {
      String name = Paths.get(new URL(base).getPath()).getFileName().toString();
      boolean any = name.startsWith("any-");
      boolean none = name.startsWith("none-");
      BundleStore used = any ? new BundleStore(root)
          : none ? new BundleStore(root, key.withVerifier((k, message, signature) -> {
            throw new java.security.NoSuchAlgorithmException("Ed25519 is not there");
          })) : store;
      refused(name, () -> System.out.println(name + ": "
          + root.relativize(used.install(new URL(base), path -> true, (done, bytes) -> { }))));
      refused("current", () -> System.out.println("current: "
          + store.current().map(root::relativize).map(Path::toString).orElse("none")));
    }
    store.clean();
  }

  /** Makes of a bundle what an update says, or the former one of it ("back"), with the key in a file; or "-", without. */
  private static void update(Path bundle, String keyFile, String word) throws Exception {
    TrustedKey key = keyFile.equals("-") ? null
        : TrustedKey.of(new String(Files.readAllBytes(Paths.get(keyFile)), StandardCharsets.UTF_8));
    String name = Paths.get(word).getFileName().toString();
    BundleUpdate.settle(bundle);
    refused(name, () -> {
      if (word.equals("back")) {
        BundleUpdate.back(bundle, key);
        System.out.println(name + ": done");
        return;
      }
      BundleUpdate.Result found = BundleUpdate.apply(bundle, Paths.get(word), key);
      System.out.println(name + ": " + found.already() + " " + (found.updateBytes() == Files.size(Paths.get(word))));
    });
  }

  /** In each round the nanoseconds of a token, with what Java does, and the engine's own part of them. */
  private static void overhead(Path file) {
    try (Model model = Model.open(file); Conversation conversation = model.conversation()) {
      AnswerOptions options = AnswerOptions.atMost(400).withEndless(true);
      conversation.append(20, 30, 41, 59);
      for (int round = 0; round < 20; round++) {
        conversation.seek(4);
        long[] inside = new long[1];
        long start = System.nanoTime();
        Answer answer = conversation.answer(options, piece -> {
          inside[0] += piece.nanoseconds();
          return true;
        });
        System.out.println((System.nanoTime() - start) / answer.tokens() + " " + inside[0] / answer.tokens());
      }
    }
  }
}
