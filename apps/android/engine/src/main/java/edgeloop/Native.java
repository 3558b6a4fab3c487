package edgeloop;

/** The functions of edgeloop_jni.cpp. Handles are pointers: {@link Model} and {@link Conversation} see to their lives. */
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

  /** What the library calls with each token: its id, the depths that chose it, nanoseconds. */
  interface Sink {
    boolean piece(long token, int depth, long nanoseconds);
  }

  /** EdgeloopException where libedgeloop is another version than this code was compiled for. */
  private static native void checkAbi();

  static native long open(byte[] path, int threads, boolean floatActivations, byte[] kernels);

  static native void close(long model);

  /** depths, vocabulary, context length, threads, bytes of the file. */
  static native long[] info(long model);

  static native byte[] kernels(long model);

  static native long newConversation(long model, int capacity, int kv, byte[] exit);

  static native void freeConversation(long conversation);

  static native void sample(
      long conversation, double temperature, int topK, double topP, double minP, long seed);

  static native void append(long conversation, long[] ids);

  static native int length(long conversation);

  static native void seek(long conversation, int tokens);

  /** What {@code stop} left is forgotten. */
  static native void begin(long conversation);

  static native void stop(long conversation);

  /** tokens, {@link Answer.Finish}, nanoseconds of the prompt, nanoseconds. */
  static native long[] answer(long conversation, int maxTokens, long[] ends, Sink sink);

  /** bytes of K and V, rows computed, calls. */
  static native long[] stats(long conversation);
}
