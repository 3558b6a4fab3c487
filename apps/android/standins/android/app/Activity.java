package android.app;

import android.content.Context;
import android.os.Bundle;

public class Activity extends Context {
  public final Application getApplication() {
    throw new UnsupportedOperationException();
  }

  protected void onCreate(Bundle savedInstanceState) {}

  protected void onDestroy() {}
}
