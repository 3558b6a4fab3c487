package edgeloop;

import java.io.IOException;
import java.util.Locale;
import java.util.Map;
import java.util.TreeMap;
import java.util.function.Predicate;

/** What a manifest says of a bundle's files: it comes from elsewhere, so names and sizes are checked. */
final class BundleFiles {
  /** Of a file: its size and what its bytes hash to. */
  record Entry(long bytes, String sha256) {}

  private BundleFiles() {}

  /** By their paths with slashes, those that {@code wanted} accepts; IOException where the manifest is none. */
  static Map<String, Entry> of(String manifest, Predicate<String> wanted) throws IOException {
    Object files;
    try {
      files = Json.read(manifest) instanceof Map<?, ?> all ? all.get("files") : null;
    } catch (IllegalArgumentException e) {
      throw new IOException("manifest.json is no JSON: " + e.getMessage(), e);
    }
    if (!(files instanceof Map<?, ?> named)) throw new IOException("manifest.json has no files, wanted a bundle's");
    Map<String, Entry> found = new TreeMap<>();
    for (Map.Entry<?, ?> each : named.entrySet()) {
      String path = (String) each.getKey();
      if (!stays(path)) throw new IOException("the file \"" + path + "\" would leave the bundle's folder");
      if (!(each.getValue() instanceof Map<?, ?> says && says.get("bytes") instanceof Long bytes && bytes >= 0
          && says.get("sha256") instanceof String hash && hash.matches("[0-9a-f]{64}")))
        throw new IOException("manifest.json says nothing usable of \"" + path + "\", wanted bytes and sha256");
      if (wanted.test(path)) found.put(path, new Entry(bytes, hash));
    }
    if (found.isEmpty()) throw new IOException("manifest.json has none of the files that are wanted");
    return found;
  }

  private static boolean stays(String path) {
    if (path.isEmpty() || path.contains("\\") || path.contains(":") || path.indexOf('\0') >= 0) return false;
    for (String part : path.split("/", -1)) {
      if (part.isEmpty() || part.equals(".") || part.equals("..")) return false;
    }
    return !path.toLowerCase(Locale.ROOT).equals("manifest.json");
  }
}
