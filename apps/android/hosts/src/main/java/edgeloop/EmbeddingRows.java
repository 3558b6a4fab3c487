package edgeloop;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import java.nio.channels.FileChannel;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.Map;
import java.util.zip.CRC32;

/** The embedding of an ExecuTorch bundle, which the host looks up: rows of the table that layout.json says where to find. */
final class EmbeddingRows {
  private static final int ENDS = 4096; // bytes at each end of a table that are checked

  private final int width;
  private final String kind; // float32, int4 or int8
  private final int groups; // of a row that have a scale each
  private final boolean half; // scales are bfloat16
  private final float factor;
  private final ByteBuffer values;
  private final ByteBuffer scales;

  /** Maps the tables; IllegalArgumentException where they are not what {@code layout}, that of {@code folder}, says. */
  EmbeddingRows(Path folder, Map<String, Object> layout) throws IOException {
    Map<String, Object> sizes = DepthProgram.object(layout, "sizes");
    Map<String, Object> table = DepthProgram.object(layout, "embedding");
    width = DepthProgram.whole(sizes, "width");
    factor = ((Number) sizes.getOrDefault("embedding_scale", 1.0)).floatValue();
    kind = DepthProgram.known(table, "kind").toString();
    groups = ((Number) table.getOrDefault("groups", 0L)).intValue();
    half = table.getOrDefault("scale_type", "bfloat16").equals("bfloat16");
    boolean plain = kind.equals("float32");
    if (!plain && (groups < 1 || width % groups != 0 || (kind.equals("int4") && width % 2 != 0)))
      throw new IllegalArgumentException(
          "layout.json has rows of " + width + " numbers in " + groups + " groups; copy the bundle again");
    long rows = DepthProgram.whole(sizes, "vocab_size");
    Path file = folder.resolve(DepthProgram.known(table, "file").toString());
    CRC32 found = new CRC32();
    try (FileChannel channel = FileChannel.open(file, StandardOpenOption.READ)) {
      long size = plain ? 4L * width : kind.equals("int4") ? width / 2 : width;
      values = mapped(channel, (Long) DepthProgram.known(table, "values"), rows * size, found);
      long start = ((Number) table.getOrDefault("scales", 0L)).longValue();
      scales = plain ? null : mapped(channel, start, rows * groups * (half ? 2 : 4), found);
    }
    if (!DepthProgram.known(table, "check").equals(found.getValue()))
      throw new IllegalArgumentException(
          file + ": the embedding is not where layout.json has it; they come from two exports, copy the bundle again");
  }

  private static ByteBuffer mapped(FileChannel channel, long start, long size, CRC32 crc) throws IOException {
    if (start < 0 || size < 1 || start > channel.size() - size)
      throw new IllegalArgumentException("the file of the embedding ends too early; copy the bundle again");
    ByteBuffer found = channel.map(FileChannel.MapMode.READ_ONLY, start, size);
    int part = (int) Math.min(size, ENDS);
    for (int at : new int[] {0, (int) size - part}) {
      byte[] end = new byte[part];
      for (int i = 0; i < part; i++) end[i] = found.get(at + i);
      crc.update(end);
    }
    return found.order(ByteOrder.LITTLE_ENDIAN);
  }

  /** Writes the embedding of token {@code id} to {@code out} [width]. */
  void row(int id, FloatBuffer out) {
    for (int i = 0; i < width; i++) {
      int at = id * width + i;
      if (scales == null) {
        out.put(i, values.getFloat(4 * at) * factor);
        continue;
      }
      int group = id * groups + i / (width / groups);
      float scale = half ? Float.intBitsToFloat(scales.getShort(2 * group) << 16) : scales.getFloat(4 * group);
      int code = kind.equals("int4") ? ((values.get(at / 2) >> (i % 2 * 4)) & 15) - 8 : values.get(at);
      out.put(i, code * scale * factor);
    }
  }
}
