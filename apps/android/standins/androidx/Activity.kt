package androidx.activity

import android.app.Activity
import android.os.Bundle
import androidx.lifecycle.ViewModel

// Stand-ins: what the chat uses of Android's and androidx's classes, with their names and, as far as the chat goes, their
// parameters, types and defaults. Nothing is drawn: they say whether the chat fits these, by Kotlin's compiler and Compose's plugin.
// They stay out of every folder src of Gradle's modules, where they would hide the real classes.

open class ComponentActivity : Activity() {
    override fun onCreate(savedInstanceState: Bundle?) = Unit
}

class SystemBarStyle private constructor() {
    companion object {
        fun auto(lightScrim: Int, darkScrim: Int): SystemBarStyle = drawn()
    }
}

fun ComponentActivity.enableEdgeToEdge(
    statusBarStyle: SystemBarStyle = SystemBarStyle.auto(0, 0),
    navigationBarStyle: SystemBarStyle = SystemBarStyle.auto(0, 0),
): Unit = drawn(statusBarStyle, navigationBarStyle)

inline fun <reified VM : ViewModel> ComponentActivity.viewModels(): Lazy<VM> = lazy { drawn(this, VM::class) }

/** What every stand-in does. */
fun drawn(vararg given: Any?): Nothing = error("nothing is drawn: ${given.size}")
