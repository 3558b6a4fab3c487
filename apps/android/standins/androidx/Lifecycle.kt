package androidx.lifecycle

import android.app.Application
import androidx.activity.drawn
import kotlinx.coroutines.CoroutineScope

abstract class ViewModel {
    protected open fun onCleared() = Unit
}

abstract class AndroidViewModel(application: Application) : ViewModel() {
    init {
        drawn(application)
    }
}

val ViewModel.viewModelScope: CoroutineScope get() = drawn(this)
