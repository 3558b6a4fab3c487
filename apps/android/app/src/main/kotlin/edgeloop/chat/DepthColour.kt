package edgeloop.chat

import kotlin.math.abs

/** ARGB from blue, where a token stopped first, to red at full depth; dark enough for text on white. */
fun depthColour(depth: Int, depths: Int): Int {
    val share = if (depths > 1) ((depth - 1f) / (depths - 1)).coerceIn(0f, 1f) else 1f
    val sector = 3.72f * (1 - share) // of six: 0.62 of the circle, and then ever less
    val chroma = 0.56f
    val other = chroma * (1 - abs(sector % 2 - 1))
    val (red, green, blue) = when (sector.toInt()) {
        0 -> Triple(chroma, other, 0f)
        1 -> Triple(other, chroma, 0f)
        2 -> Triple(0f, chroma, other)
        else -> Triple(0f, other, chroma)
    }
    fun byte(part: Float) = ((part + 0.19f) * 255 + 0.5f).toInt()
    return (0xff shl 24) or (byte(red) shl 16) or (byte(green) shl 8) or byte(blue)
}
