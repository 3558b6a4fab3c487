package edgeloop;

import java.io.IOException;
import java.net.URI;
import java.net.URISyntaxException;
import java.net.URL;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.util.Comparator;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.function.Predicate;
import java.util.stream.Collectors;
import java.util.stream.Stream;

/**
 * A folder with the bundle that an app uses. A new one is downloaded beside it, goes on where it was broken off, and takes
 * its place in one step when every byte of it was checked; the old one stays until then, and {@link #clean} removes it.
 *
 * <p>What is checked is that the files are those of the manifest. Who wrote the manifest a signature says, where a
 * {@link TrustedKey} is given; else it is for the connection to say: give an https address. That a bundle is the newest one
 * neither says. One thread, and one process, installs at a time.
 */
public final class BundleStore {
  /** What an app on the lane engine needs of a bundle. */
  public static final Predicate<String> NATIVE = path -> path.equals("native/model.lanes");

  /** What one on ONNX Runtime needs for one user: three graphs, their weights, and the text where the bundle has it. */
  public static final Predicate<String> ONNX = path -> path.equals("text.lanes")
      || path.matches("onnx/((prologue|block|epilogue)\\.onnx|weights\\.safetensors)");

  /** What one on ExecuTorch needs: its folder, and the text where the bundle has it. */
  public static final Predicate<String> EXECUTORCH = path -> path.equals("text.lanes") || path.startsWith("executorch/");

  private static final int MANIFEST_BYTES = 64 << 20;
  private static final int SIGNATURE_BYTES = 4096;
  private static final String CURRENT = "current";
  static final String MANIFEST = "manifest.json";
  private final Path root;
  private final TrustedKey trust;

  /** {@code root}: a folder of the app's own, which need not be there yet. Signatures are not looked at. */
  public BundleStore(Path root) {
    this(root, null);
  }

  /** Only bundles that {@code trust} signed are installed, or are current; {@code null}: any. */
  public BundleStore(Path root, TrustedKey trust) {
    this.root = root;
    this.trust = trust;
  }

  /** Gets how far a download is. */
  @FunctionalInterface
  public interface Progress {
    /** {@code done} of {@code bytes} are there. */
    void on(long done, long bytes);
  }

  /**
   * The folder of the bundle that was installed last. IOException where it is not signed by the trusted key, as one that was
   * installed without.
   */
  public Optional<Path> current() throws IOException {
    Optional<Path> found = pointed();
    if (trust != null && found.isPresent()) Signed.check(found.get(), trust);
    return found;
  }

  private Optional<Path> pointed() throws IOException {
    Path pointer = root.resolve(CURRENT);
    if (!Files.exists(pointer)) return Optional.empty();
    String name = new String(Files.readAllBytes(pointer), StandardCharsets.UTF_8);
    if (!name.matches("[0-9a-f]{64}")) throw new IOException(pointer + " names no bundle: delete it, and install again");
    return Optional.of(root.resolve(name));
  }

  /**
   * Installs the bundle at {@code base}, which ends with a slash, with those of its files that {@code wanted} accepts; and
   * returns its folder. IOException, one line, for a server, a signature, a manifest or a file that is not as it should be:
   * the bundle of before stays in use, and a further call goes on with what came.
   */
  public Path install(URL base, Predicate<String> wanted, Progress progress) throws IOException {
    byte[] manifest = Fetcher.small(new URL(base, MANIFEST), MANIFEST_BYTES);
    Map<String, BundleFiles.Entry> files = BundleFiles.of(new String(manifest, StandardCharsets.UTF_8), wanted);
    byte[][] signature = trust == null ? null : signatureOf(base, manifest, files);
    String name = Fetcher.sha256(manifest);
    Path folder = root.resolve(name);
    Files.createDirectories(folder);
    long bytes = 0;
    long missing = 0;
    for (Map.Entry<String, BundleFiles.Entry> each : files.entrySet()) {
      bytes = Math.addExact(bytes, each.getValue().bytes());
      if (!Files.exists(folder.resolve(each.getKey()))) missing += each.getValue().bytes();
    }
    long room = folder.toFile().getUsableSpace(); // Android has no FileStore
    if (missing > room)
      throw new IOException("the bundle needs " + missing + " bytes, and " + room + " are free: delete something");
    long before = 0;
    for (Map.Entry<String, BundleFiles.Entry> each : files.entrySet()) {
      Path goal = folder.resolve(each.getKey());
      long start = before;
      long all = bytes;
      if (!Files.exists(goal))
        Fetcher.into(goal, inside(base, each.getKey()), each.getValue(), got -> progress.on(start + got, all));
      before += each.getValue().bytes();
      progress.on(before, bytes);
    }
    replace(folder.resolve(MANIFEST), manifest);
    if (signature != null) {
      replace(folder.resolve(Signed.SUMS), signature[0]);
      replace(folder.resolve(Signed.SIGNATURE), signature[1]);
    }
    replace(root.resolve(CURRENT), name.getBytes(StandardCharsets.UTF_8));
    return folder;
  }

  /** Removes every bundle but the current one, half ones too; a model that is still open keeps its mapped file. */
  public void clean() throws IOException {
    if (!Files.exists(root)) return;
    Optional<Path> current = pointed();
    try (Stream<Path> all = Files.list(root)) {
      for (Path each : (Iterable<Path>) all::iterator) {
        if (each.getFileName().toString().matches("[0-9a-f]{64}") && !current.equals(Optional.of(each))) delete(each);
      }
    }
  }

  /** The list of hashes and its signature, checked before a file is asked for. */
  private byte[][] signatureOf(URL base, byte[] manifest, Map<String, BundleFiles.Entry> files) throws IOException {
    String[] names = {Signed.SUMS, Signed.SIGNATURE};
    int[] most = {MANIFEST_BYTES, SIGNATURE_BYTES};
    byte[][] found = new byte[2][];
    for (int i = 0; i < 2; i++) {
      found[i] = Fetcher.smallIfThere(new URL(base, names[i]), most[i]);
      if (found[i] == null) throw new IOException(base + " is not signed: it has no " + names[i] + "; get a signed bundle");
    }
    Signed.check(base.toString(), trust, found[0], found[1], manifest, files);
    return found;
  }

  private static URL inside(URL base, String path) throws IOException {
    try {
      return new URL(base, new URI(null, null, path, null).getRawPath()); // what is no letter of an address is escaped
    } catch (URISyntaxException e) {
      throw new IOException("the file \"" + path + "\" has no address", e);
    }
  }

  private static void delete(Path folder) throws IOException {
    List<Path> all;
    try (Stream<Path> found = Files.walk(folder)) {
      all = found.sorted(Comparator.reverseOrder()).collect(Collectors.toList());
    }
    for (Path each : all) Files.delete(each);
  }

  private static void replace(Path goal, byte[] bytes) throws IOException {
    Path fresh = goal.resolveSibling(goal.getFileName() + ".new");
    Files.write(fresh, bytes);
    Files.move(fresh, goal, StandardCopyOption.ATOMIC_MOVE, StandardCopyOption.REPLACE_EXISTING);
  }
}
