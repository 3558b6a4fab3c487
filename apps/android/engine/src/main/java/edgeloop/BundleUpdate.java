package edgeloop;

import java.io.IOException;
import java.nio.file.Path;

/**
 * A folder with a whole bundle becomes the next one, of a file that {@code edgeloop diff OLD NEW -o bundle.update} made. Killed at
 * any moment the folder is the old bundle or the new one, and the same call finishes it. A model that is open keeps the file that it has.
 *
 * <p>Refusals are an EdgeloopException with one line, and the bundle stays as it was: an update of another bundle, a damaged or
 * altered one, and, where a key is given, one that it did not sign. IOException where nothing here can check signatures.
 */
public final class BundleUpdate {
  private BundleUpdate() {}

  /**
   * What an update came to: {@code already}, the bundle was the new one before; the bytes of the update, of the new bundle, and of
   * the files of it that were written.
   */
  public record Result(boolean already, long updateBytes, long bundleBytes, long writtenBytes) {}

  /** Makes of the folder {@code bundle} the one that {@code update} is for. {@code trust}: who has to have signed it, or null. */
  public static Result apply(Path bundle, Path update, TrustedKey trust) throws IOException {
    long[] found = Native.applyUpdate(bytes(bundle), bytes(update), key(trust), verifier(trust));
    return new Result(found[0] != 0, found[1], found[2], found[3]);
  }

  /** The former bundle takes its place again. {@code trust}: who has to have signed that, or null. */
  public static void back(Path bundle, TrustedKey trust) throws IOException {
    Native.updateBack(bytes(bundle), key(trust), verifier(trust));
  }

  /** Finishes or takes back what a killed process had begun; before a bundle is opened. */
  public static void settle(Path bundle) {
    Native.settleUpdate(bytes(bundle));
  }

  private static byte[] bytes(Path path) {
    return Utf8.bytes(path.toString());
  }

  private static byte[] key(TrustedKey trust) {
    return trust == null ? null : trust.raw();
  }

  private static Native.Verifier verifier(TrustedKey trust) {
    return trust == null ? null : trust::signed;
  }
}
