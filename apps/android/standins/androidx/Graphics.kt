package androidx.compose.ui.graphics

import androidx.activity.drawn

@JvmInline
value class Color(val value: ULong) {
    companion object {
        val Unspecified: Color get() = drawn()
    }
}

fun Color(color: Int): Color = drawn(color)

fun Color(color: Long): Color = drawn(color)
