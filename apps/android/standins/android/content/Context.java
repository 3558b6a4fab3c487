package android.content;

import java.io.File;

/** A stand-in, as all in this folder: see androidx/Activity.kt. */
public class Context {
  public File getFilesDir() {
    throw new UnsupportedOperationException();
  }
}
