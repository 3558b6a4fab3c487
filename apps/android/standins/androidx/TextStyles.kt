package androidx.compose.ui.text

import androidx.activity.drawn
import androidx.compose.ui.graphics.Color

class SpanStyle(color: Color = Color.Unspecified) {
    val color: Color = drawn(color)
}

class AnnotatedString(val text: String) : CharSequence by text {
    class Builder(capacity: Int = 16) : Appendable {
        init {
            drawn(capacity)
        }

        fun append(text: String): Unit = drawn(text)

        override fun append(text: CharSequence?): Builder = drawn(text)

        override fun append(text: CharSequence?, start: Int, end: Int): Builder = drawn(text, start, end)

        override fun append(char: Char): Builder = drawn(char)

        fun pushStyle(style: SpanStyle): Int = drawn(style)
    }
}

inline fun buildAnnotatedString(builder: (AnnotatedString.Builder).() -> Unit): AnnotatedString =
    drawn(AnnotatedString.Builder().apply(builder))

inline fun <R : Any> AnnotatedString.Builder.withStyle(style: SpanStyle, block: AnnotatedString.Builder.() -> R): R =
    block(this).also { pushStyle(style) }
