package androidx.compose.ui.unit

import androidx.activity.drawn

@JvmInline
value class Dp(val value: Float)

val Int.dp: Dp get() = drawn(this)
