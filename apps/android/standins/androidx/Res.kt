package androidx.compose.ui.res

import androidx.activity.drawn
import androidx.compose.runtime.Composable
import androidx.compose.runtime.ReadOnlyComposable

@Composable
@ReadOnlyComposable
fun stringResource(id: Int): String = drawn(id)

@Composable
@ReadOnlyComposable
fun stringResource(id: Int, vararg formatArgs: Any): String = drawn(id, formatArgs)
