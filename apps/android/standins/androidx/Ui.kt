package androidx.compose.ui

import androidx.activity.drawn

interface Modifier {
    companion object : Modifier
}

interface Alignment {
    interface Horizontal

    interface Vertical

    companion object {
        val Top: Vertical get() = drawn()
        val CenterVertically: Vertical get() = drawn()
        val Start: Horizontal get() = drawn()
    }
}
