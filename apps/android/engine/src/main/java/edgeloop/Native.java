package edgeloop;

import java.io.IOException;

/** The functions of edgeloop_jni.cpp. Handles are pointers: {@link Users} and {@link Conversation} see to their lives. */
final class Native {
  /** The library's path where it is on no search path, as on a desktop; on Android the APK has it. */
  private static final String PATH = "edgeloop.library";

  static {
    String path = System.getProperty(PATH);
    if (path == null) {
      System.loadLibrary("edgeloop_jni");
    } else {
      System.load(path);
    }
    checkAbi();
  }

  private Native() {}

  /** What the library calls with each token. */
  interface Sink {
    boolean piece(byte[] utf8, long token, int depth, long nanoseconds);
  }

  /** Whom the library asks of a signature. */
  interface Verifier {
    boolean signed(byte[] message, byte[] signature) throws IOException;
  }

  /** EdgeloopException where libedgeloop is another version than this code was compiled for. */
  private static native void checkAbi();

  static native long open(byte[] path, int threads, boolean floatActivations, byte[] kernels);

  static native void close(long model);

  /** depths, vocabulary, context length, threads, bytes of the file, {@link ModelInfo.Turns}, system, thinking. */
  static native long[] info(long model);

  /** The kernels' name, the model's, those of its exit rules. */
  static native byte[][] names(long model);

  static native long[] ends(long model);

  /** 0 where the file has no tokenizer. */
  static native long openText(long model);

  /** That of a text.lanes, of which no model is. */
  static native long readText(byte[] path);

  static native void closeText(long text);

  static native long[] textEnds(long text);

  static native long[] encode(long text, byte[] utf8, boolean addSpecial);

  static native byte[] decode(long text, long[] ids, boolean skipSpecial);

  /** {@code messages}: a role, a text, a role … */
  static native byte[] render(long model, byte[][] messages, int flags);

  static native byte[] renderText(long text, byte[][] messages, int flags);

  static native long newWriter(long text, long[] prompt, byte[][] stops);

  static native void freeWriter(long writer);

  /** Puts what is certain into {@code utf8} [1]; true: a stop string has come. */
  static native boolean push(long writer, long token, byte[][] utf8);

  static native byte[] endWriter(long writer);

  static native long newContext(long model, long text, int capacity, int kv, boolean drafts, int think, int answerRoom,
      byte[] exit, byte[] skippedKv);

  static native void freeContext(long context);

  static native void append(long context, long[] ids);

  static native void text(long context, byte[] utf8);

  static native void say(long context, byte[] role, byte[] content);

  static native void chat(long context, byte[][] messages);

  /**
   * tokens, {@link Answer.Finish}, tokens of the prompt, messages that were forgotten, nanoseconds of the prompt, to the
   * first text, in all.
   */
  static native long[] answer(long context, int maxTokens, boolean endless, byte[][] stops, double temperature, int topK,
      double topP, double minP, long seed, Sink sink);

  static native void stop(long context);

  /** Tokens, messages. */
  static native long[] length(long context);

  static native long[] ids(long context);

  /** Its role and its text. */
  static native byte[][] message(long context, int number);

  static native void seek(long context, int tokens);

  static native void again(long context);

  static native long fork(long context);

  static native void save(long context, byte[] path);

  static native void load(long context, byte[] path);

  /** tokens, cached, bytes of K and V, shared ones, generated, drafts, right ones; then by depth tokens that ended there. */
  static native long[] stats(long context);

  /** 1 where the bundle was the new one already; bytes of the update, of the bundle, and of what was written. */
  static native long[] applyUpdate(byte[] bundle, byte[] update, byte[] key, Verifier verifier) throws IOException;

  static native void updateBack(byte[] bundle, byte[] key, Verifier verifier) throws IOException;

  static native void settleUpdate(byte[] bundle);
}
