package androidx.compose.material3

import androidx.activity.drawn
import androidx.compose.foundation.layout.RowScope
import androidx.compose.runtime.Composable
import androidx.compose.runtime.ReadOnlyComposable
import androidx.compose.ui.Modifier
import androidx.compose.ui.graphics.Color
import androidx.compose.ui.text.AnnotatedString

class ColorScheme private constructor() {
    val error: Color get() = drawn()
}

object MaterialTheme {
    val colorScheme: ColorScheme
        @Composable @ReadOnlyComposable
        get() = drawn()
}

@Composable
fun MaterialTheme(colorScheme: ColorScheme = MaterialTheme.colorScheme, content: @Composable () -> Unit): Unit = drawn(colorScheme, content)

@Composable
fun Text(text: String, modifier: Modifier = Modifier, color: Color = Color.Unspecified): Unit = drawn(text, modifier, color)

@Composable
fun Text(text: AnnotatedString, modifier: Modifier = Modifier, color: Color = Color.Unspecified): Unit = drawn(text, modifier, color)

@Composable
fun Button(
    onClick: () -> Unit,
    modifier: Modifier = Modifier,
    enabled: Boolean = true,
    content: @Composable RowScope.() -> Unit,
): Unit = drawn(onClick, modifier, enabled, content)

@Composable
fun Slider(
    value: Float,
    onValueChange: (Float) -> Unit,
    modifier: Modifier = Modifier,
    enabled: Boolean = true,
    valueRange: ClosedFloatingPointRange<Float> = 0f..1f,
    steps: Int = 0,
    onValueChangeFinished: (() -> Unit)? = null,
): Unit = drawn(value, onValueChange, modifier, enabled, valueRange, steps, onValueChangeFinished)

@Composable
fun OutlinedTextField(
    value: String,
    onValueChange: (String) -> Unit,
    modifier: Modifier = Modifier,
    enabled: Boolean = true,
    readOnly: Boolean = false,
    label: (@Composable () -> Unit)? = null,
    placeholder: (@Composable () -> Unit)? = null,
): Unit = drawn(value, onValueChange, modifier, enabled, readOnly, label, placeholder)

@Composable
fun LinearProgressIndicator(progress: () -> Float, modifier: Modifier = Modifier): Unit = drawn(progress, modifier)
