package androidx.activity.compose

import androidx.activity.ComponentActivity
import androidx.activity.drawn
import androidx.compose.runtime.Composable
import androidx.compose.runtime.CompositionContext

fun ComponentActivity.setContent(parent: CompositionContext? = null, content: @Composable () -> Unit): Unit = drawn(parent, content)
