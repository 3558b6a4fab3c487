package edgeloop;

import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.InterruptedIOException;
import java.net.HttpURLConnection;
import java.net.URL;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.nio.file.StandardOpenOption;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.function.LongConsumer;

/** One file from a web server: what is there already is kept, and what came is believed only by its hash. */
final class Fetcher {
  private static final int MILLISECONDS = 30_000;
  private static final int OK = 200;
  private static final int PARTIAL = 206;
  private static final int NOT_FOUND = 404;
  private static final int UNSATISFIABLE = 416;

  private Fetcher() {}

  /** At most {@code most} bytes of {@code url}. */
  static byte[] small(URL url, int most) throws IOException {
    byte[] found = smallIfThere(url, most);
    if (found == null) throw new IOException(url + " answered " + NOT_FOUND + ", wanted " + OK);
    return found;
  }

  /** The same; {@code null} where the server says that there is no such file. */
  static byte[] smallIfThere(URL url, int most) throws IOException {
    HttpURLConnection connection = open(url, 0);
    if (connection.getResponseCode() == NOT_FOUND) {
      connection.disconnect();
      return null;
    }
    try (InputStream in = checked(connection, url).getInputStream()) {
      ByteArrayOutputStream found = new ByteArrayOutputStream();
      byte[] buffer = new byte[1 << 16];
      for (int count; (count = in.read(buffer)) >= 0; found.write(buffer, 0, count)) {
        if (found.size() > most - count) throw new IOException(url + " has more than " + most + " bytes, wanted a manifest");
      }
      return found.toByteArray();
    } finally {
      connection.disconnect();
    }
  }

  /**
   * {@code url} in {@code goal}, whole and with the hash that {@code wanted} says. What came before a call was broken off
   * lies beside it as {@code .part}, and is gone on with. An interrupt of the thread breaks it off.
   */
  static void into(Path goal, URL url, BundleFiles.Entry wanted, LongConsumer got) throws IOException {
    Path part = goal.resolveSibling(goal.getFileName() + ".part");
    Files.createDirectories(goal.getParent());
    // The part may be of another version of the file: then the hash is wrong, and all of it comes once more.
    for (boolean again = Files.exists(part); ; again = false) {
      long there = Files.exists(part) ? Files.size(part) : 0;
      if (there > wanted.bytes()) Files.delete(part);
      if (there != wanted.bytes() || wanted.bytes() == 0) append(part, url, wanted.bytes(), got);
      String found = sha256(part);
      if (found.equals(wanted.sha256())) break;
      Files.delete(part);
      if (!again)
        throw new IOException(
            url + " has SHA-256 " + found + ", wanted " + wanted.sha256() + ": its server has another file");
    }
    Files.move(part, goal, StandardCopyOption.ATOMIC_MOVE);
    got.accept(wanted.bytes());
  }

  private static void append(Path part, URL url, long size, LongConsumer got) throws IOException {
    long from = Files.exists(part) ? Files.size(part) : 0;
    HttpURLConnection connection = open(url, from);
    try {
      if (connection.getResponseCode() == UNSATISFIABLE && from > 0) {
        connection.disconnect();
        Files.delete(part);
        from = 0;
        connection = open(url, 0);
      }
      checked(connection, url);
      boolean goesOn = connection.getResponseCode() == PARTIAL;
      if (goesOn && !String.valueOf(connection.getHeaderField("Content-Range")).startsWith("bytes " + from + "-"))
        throw new IOException(url + " answered with another part than asked for, wanted bytes from " + from + " on");
      long have = goesOn ? from : 0;
      try (InputStream in = connection.getInputStream();
          FileChannel out = FileChannel.open(part, StandardOpenOption.CREATE, StandardOpenOption.WRITE)) {
        out.truncate(have).position(have);
        byte[] buffer = new byte[1 << 16];
        for (int count; (count = in.read(buffer)) >= 0; ) {
          if (Thread.currentThread().isInterrupted()) throw new InterruptedIOException("the download was broken off");
          have += count;
          if (have > size) throw new IOException(url + " has more than the " + size + " bytes that the manifest says");
          for (ByteBuffer left = ByteBuffer.wrap(buffer, 0, count); left.hasRemaining(); ) out.write(left);
          got.accept(have);
        }
        out.force(true);
      }
      if (have < size) throw new IOException(url + " ended after " + have + " of " + size + " bytes: try again");
    } finally {
      connection.disconnect();
    }
  }

  private static HttpURLConnection open(URL url, long from) throws IOException {
    if (!(url.openConnection() instanceof HttpURLConnection connection))
      throw new IOException(url + " is no web address, wanted https");
    connection.setConnectTimeout(MILLISECONDS);
    connection.setReadTimeout(MILLISECONDS);
    connection.setRequestProperty("Accept-Encoding", "identity");
    if (from > 0) connection.setRequestProperty("Range", "bytes=" + from + "-");
    return connection;
  }

  private static HttpURLConnection checked(HttpURLConnection connection, URL url) throws IOException {
    int code = connection.getResponseCode();
    if (code != OK && code != PARTIAL) throw new IOException(url + " answered " + code + ", wanted " + OK);
    return connection;
  }

  static String sha256(Path file) throws IOException {
    MessageDigest digest = digest();
    try (InputStream in = Files.newInputStream(file)) {
      byte[] buffer = new byte[1 << 16];
      for (int count; (count = in.read(buffer)) >= 0; ) digest.update(buffer, 0, count);
    }
    return hex(digest);
  }

  static String sha256(byte[] bytes) {
    MessageDigest digest = digest();
    digest.update(bytes);
    return hex(digest);
  }

  private static MessageDigest digest() {
    try {
      return MessageDigest.getInstance("SHA-256");
    } catch (NoSuchAlgorithmException e) {
      throw new IllegalStateException(e); // every Java has it
    }
  }

  private static String hex(MessageDigest digest) {
    StringBuilder found = new StringBuilder();
    for (byte b : digest.digest()) {
      found.append(Character.forDigit((b >> 4) & 15, 16)).append(Character.forDigit(b & 15, 16));
    }
    return found.toString();
  }
}
