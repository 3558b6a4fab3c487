package edgeloop;

import java.io.IOException;
import java.security.GeneralSecurityException;
import java.security.KeyFactory;
import java.security.Signature;
import java.security.spec.X509EncodedKeySpec;
import java.util.Arrays;
import java.util.Base64;

/**
 * Whose bundles an app takes: the public key of those who make them, an Ed25519 one. {@code edgeloop sign --new-key key.pem}
 * makes such a pair, and {@code edgeloop sign bundle --key key.pem} signs.
 */
public final class TrustedKey {
  private static final int BYTES = 32;
  private static final int SIGNATURE_BYTES = 64;
  /** What X.509 has in front of the 32 bytes (RFC 8410). */
  private static final byte[] X509 = {0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00};

  private static final String WANTED =
      "wanted the text of key.pem.pub, as `edgeloop sign --new-key key.pem` writes it, or its public_hex";
  private final byte[] key;
  private final Verifier verifier;

  private TrustedKey(byte[] key, Verifier verifier) {
    this.key = key;
    this.verifier = verifier;
  }

  /** Checks a signature: java.security has Ed25519 from Android 13 on; before that an app gives one of Tink. */
  @FunctionalInterface
  public interface Verifier {
    /** Whether {@code signature}, 64 bytes, is that of {@code message} by {@code key}, 32 bytes. */
    boolean signed(byte[] key, byte[] message, byte[] signature) throws GeneralSecurityException;
  }

  /**
   * The key in {@code text}: a PEM file's, or 64 hexadecimal digits. IllegalArgumentException, one line, for anything else.
   */
  public static TrustedKey of(String text) {
    String given = text.trim();
    byte[] raw;
    if (given.matches("[0-9a-fA-F]{64}")) {
      raw = new byte[BYTES];
      for (int i = 0; i < BYTES; i++) raw[i] = (byte) Integer.parseInt(given.substring(2 * i, 2 * i + 2), 16);
    } else {
      raw = ofPem(given);
    }
    return new TrustedKey(raw, TrustedKey::signedByJava);
  }

  /** The same key, whose signatures {@code verifier} checks. */
  public TrustedKey withVerifier(Verifier verifier) {
    return new TrustedKey(key, verifier);
  }

  byte[] raw() {
    return key.clone();
  }

  /** Whether {@code signature} is this key's, of {@code message}; IOException where nothing here can tell. */
  boolean signed(byte[] message, byte[] signature) throws IOException {
    if (signature.length != SIGNATURE_BYTES) return false;
    try {
      return verifier.signed(raw(), message, signature);
    } catch (GeneralSecurityException e) {
      throw new IOException(
          "signatures cannot be checked here (" + e.getMessage() + "): give the trusted key a verifier, as Tink has one", e);
    }
  }

  private static byte[] ofPem(String text) {
    String begin = "-----BEGIN PUBLIC KEY-----";
    String end = "-----END PUBLIC KEY-----";
    if (!text.startsWith(begin) || !text.endsWith(end)) throw new IllegalArgumentException("the key is no public one; " + WANTED);
    byte[] found;
    try {
      found = Base64.getMimeDecoder().decode(text.substring(begin.length(), text.length() - end.length()));
    } catch (IllegalArgumentException e) {
      throw new IllegalArgumentException("the key is no PEM file; " + WANTED, e);
    }
    if (found.length != X509.length + BYTES || !Arrays.equals(Arrays.copyOf(found, X509.length), X509))
      throw new IllegalArgumentException("the key is not one of Ed25519; " + WANTED);
    return Arrays.copyOfRange(found, X509.length, found.length);
  }

  private static boolean signedByJava(byte[] key, byte[] message, byte[] signature) throws GeneralSecurityException {
    byte[] encoded = Arrays.copyOf(X509, X509.length + BYTES);
    System.arraycopy(key, 0, encoded, X509.length, BYTES);
    Signature checks = Signature.getInstance("Ed25519");
    checks.initVerify(KeyFactory.getInstance("Ed25519").generatePublic(new X509EncodedKeySpec(encoded)));
    checks.update(message);
    try {
      return checks.verify(signature);
    } catch (java.security.SignatureException e) {
      return false; // what is no signature at all
    }
  }
}
