package edgeloop;

import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Collections;
import java.util.HashMap;
import java.util.Map;

/** The two files of a signed bundle: the hash of every file of it, and the signature of that list. */
final class Signed {
  static final String SUMS = "SHA256SUMS";
  static final String SIGNATURE = "SHA256SUMS.sig";
  private static final int HASH_DIGITS = 64;

  private Signed() {}

  /**
   * IOException, one line, unless {@code signature} is {@code trust}'s of {@code sums}, and that list has {@code manifest}
   * and {@code files} as they are. {@code name}: what is checked.
   */
  static void check(String name, TrustedKey trust, byte[] sums, byte[] signature, byte[] manifest,
      Map<String, BundleFiles.Entry> files) throws IOException {
    if (!trust.signed(sums, signature))
      throw new IOException(name + " is not signed by the trusted key, or was changed: do not use it");
    Map<String, String> hashes = new HashMap<>();
    for (String line : new String(sums, StandardCharsets.UTF_8).split("\n")) {
      if (line.length() > HASH_DIGITS + 2) hashes.put(line.substring(HASH_DIGITS + 2), line.substring(0, HASH_DIGITS));
    }
    boolean same = Fetcher.sha256(manifest).equals(hashes.get(BundleStore.MANIFEST));
    for (Map.Entry<String, BundleFiles.Entry> each : files.entrySet()) {
      same &= each.getValue().sha256().equals(hashes.get(each.getKey()));
    }
    if (!same) throw new IOException(name + ": " + SUMS + " is not that of its files; it was changed after it was signed");
  }

  /** The same of a bundle's folder, whose files in the manifest are not read. */
  static void check(Path folder, TrustedKey trust) throws IOException {
    for (String name : new String[] {SUMS, SIGNATURE}) {
      if (!Files.exists(folder.resolve(name)))
        throw new IOException(folder + " is not signed: it has no " + name + "; install the bundle again");
    }
    byte[] manifest = Files.readAllBytes(folder.resolve(BundleStore.MANIFEST));
    check(folder.toString(), trust, Files.readAllBytes(folder.resolve(SUMS)), Files.readAllBytes(folder.resolve(SIGNATURE)),
        manifest, Collections.emptyMap());
  }
}
