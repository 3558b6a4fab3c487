package edgeloop.chat

import android.app.Application
import android.os.Bundle
import androidx.activity.ComponentActivity
import androidx.activity.compose.setContent
import androidx.activity.enableEdgeToEdge
import androidx.activity.viewModels
import androidx.compose.material3.MaterialTheme
import androidx.lifecycle.AndroidViewModel
import androidx.lifecycle.viewModelScope

/** The chat, which outlives the activity where Android only makes that anew, as for a turned screen; its scope ends first. */
class ChatModel(application: Application) : AndroidViewModel(application) {
    val state = ChatState(viewModelScope, application.filesDir.toPath().resolve("bundles"))

    init {
        state.open()
    }

    override fun onCleared() = state.close()
}

class MainActivity : ComponentActivity() {
    private val model: ChatModel by viewModels()

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        enableEdgeToEdge()
        setContent { MaterialTheme { ChatScreen(model.state) } }
    }
}
