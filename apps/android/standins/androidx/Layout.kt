package androidx.compose.foundation.layout

import androidx.activity.drawn
import androidx.compose.runtime.Composable
import androidx.compose.ui.Alignment
import androidx.compose.ui.Modifier
import androidx.compose.ui.unit.Dp

@DslMarker
annotation class LayoutScopeMarker

object Arrangement {
    interface Horizontal

    interface Vertical

    interface HorizontalOrVertical : Horizontal, Vertical

    val Start: Horizontal get() = drawn()
    val Top: Vertical get() = drawn()

    fun spacedBy(space: Dp): HorizontalOrVertical = drawn(space)
}

@LayoutScopeMarker
interface ColumnScope {
    fun Modifier.weight(weight: Float, fill: Boolean = true): Modifier
}

@LayoutScopeMarker
interface RowScope {
    fun Modifier.weight(weight: Float, fill: Boolean = true): Modifier
}

@Composable
inline fun Column(
    modifier: Modifier = Modifier,
    verticalArrangement: Arrangement.Vertical = Arrangement.Top,
    horizontalAlignment: Alignment.Horizontal = Alignment.Start,
    content: @Composable ColumnScope.() -> Unit,
): Unit = content(drawn(modifier, verticalArrangement, horizontalAlignment))

@Composable
inline fun Row(
    modifier: Modifier = Modifier,
    horizontalArrangement: Arrangement.Horizontal = Arrangement.Start,
    verticalAlignment: Alignment.Vertical = Alignment.Top,
    content: @Composable RowScope.() -> Unit,
): Unit = content(drawn(modifier, horizontalArrangement, verticalAlignment))

fun Modifier.fillMaxSize(fraction: Float = 1f): Modifier = drawn(fraction)

fun Modifier.fillMaxWidth(fraction: Float = 1f): Modifier = drawn(fraction)

fun Modifier.padding(all: Dp): Modifier = drawn(all)

fun Modifier.imePadding(): Modifier = drawn()

fun Modifier.systemBarsPadding(): Modifier = drawn()
