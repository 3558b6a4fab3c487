package androidx.compose.runtime

import androidx.activity.drawn
import kotlinx.coroutines.flow.StateFlow
import kotlin.coroutines.CoroutineContext
import kotlin.coroutines.EmptyCoroutineContext
import kotlin.reflect.KProperty

@Target(AnnotationTarget.FUNCTION, AnnotationTarget.TYPE, AnnotationTarget.TYPE_PARAMETER, AnnotationTarget.PROPERTY_GETTER)
@Retention(AnnotationRetention.BINARY)
annotation class Composable

@Target(AnnotationTarget.FUNCTION, AnnotationTarget.PROPERTY_GETTER)
@Retention(AnnotationRetention.BINARY)
annotation class ReadOnlyComposable

@Target(AnnotationTarget.TYPE)
@Retention(AnnotationRetention.BINARY)
annotation class DisallowComposableCalls

abstract class CompositionContext

interface State<out T> {
    val value: T
}

interface MutableState<T> : State<T> {
    override var value: T
}

interface FloatState : State<Float> {
    val floatValue: Float
}

interface MutableFloatState : FloatState, MutableState<Float> {
    override var floatValue: Float
}

fun <T> mutableStateOf(value: T): MutableState<T> = drawn(value)

fun mutableFloatStateOf(value: Float): MutableFloatState = drawn(value)

operator fun <T> State<T>.getValue(thisObj: Any?, property: KProperty<*>): T = drawn(thisObj, property)

operator fun <T> MutableState<T>.setValue(thisObj: Any?, property: KProperty<*>, value: T): Unit = drawn(thisObj, property, value)

operator fun FloatState.getValue(thisObj: Any?, property: KProperty<*>): Float = drawn(thisObj, property)

operator fun MutableFloatState.setValue(thisObj: Any?, property: KProperty<*>, value: Float): Unit = drawn(thisObj, property, value)

@Composable
inline fun <T> remember(key1: Any?, key2: Any?, crossinline calculation: @DisallowComposableCalls () -> T): T =
    if (key1 == key2) drawn() else calculation()

@Composable
fun <T> StateFlow<T>.collectAsState(context: CoroutineContext = EmptyCoroutineContext): State<T> = drawn(context)
