package androidx.compose.foundation.lazy

import androidx.activity.drawn
import androidx.compose.foundation.layout.Arrangement
import androidx.compose.runtime.Composable
import androidx.compose.ui.Modifier

@DslMarker
annotation class LazyScopeMarker

@LazyScopeMarker
interface LazyItemScope

@LazyScopeMarker
interface LazyListScope {
    fun items(
        count: Int,
        key: ((index: Int) -> Any)? = null,
        contentType: (index: Int) -> Any? = { null },
        itemContent: @Composable LazyItemScope.(index: Int) -> Unit,
    )
}

inline fun <T> LazyListScope.items(
    items: List<T>,
    noinline key: ((item: T) -> Any)? = null,
    noinline contentType: (item: T) -> Any? = { null },
    crossinline itemContent: @Composable LazyItemScope.(item: T) -> Unit,
) {
    items(items.size) { index ->
        drawn(key, contentType)
        itemContent(items[index])
    }
}

class LazyListState

@Composable
fun rememberLazyListState(): LazyListState = drawn()

@Composable
fun LazyColumn(
    modifier: Modifier = Modifier,
    state: LazyListState = rememberLazyListState(),
    reverseLayout: Boolean = false,
    verticalArrangement: Arrangement.Vertical = Arrangement.Top,
    content: LazyListScope.() -> Unit,
): Unit = drawn(modifier, state, reverseLayout, verticalArrangement, content)
