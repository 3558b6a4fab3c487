package edgeloop.chat

import edgeloop.AnswerOptions
import edgeloop.BundleStore
import edgeloop.Conversation
import edgeloop.ConversationOptions
import edgeloop.Message
import edgeloop.Model
import edgeloop.Piece
import edgeloop.Sampling
import edgeloop.download
import edgeloop.pieces
import kotlinx.coroutines.CancellationException
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.Job
import kotlinx.coroutines.flow.MutableStateFlow
import kotlinx.coroutines.flow.StateFlow
import kotlinx.coroutines.flow.asStateFlow
import kotlinx.coroutines.flow.update
import kotlinx.coroutines.launch
import kotlinx.coroutines.withContext
import java.net.URL
import java.nio.file.Path

/** A message on the screen; an answer is its tokens. */
data class Shown(val role: String, val pieces: List<Piece>) {
    val text: String get() = pieces.joinToString("") { it.text }
}

/** What the screen shows. */
data class Screen(
    val ready: Boolean = false,
    val busy: Boolean = false,
    val messages: List<Shown> = emptyList(),
    val depths: Int = 1,
    val rules: List<String> = listOf("never"),
    val rule: String = "never",
    val downloaded: Float? = null,
    val problem: String? = null,
)

/**
 * The chat without its screen, and without a class of Android's: what the buttons do, in [scope], one after the other.
 * [folder] is where bundles are kept.
 */
class ChatState(private val scope: CoroutineScope, folder: Path) : AutoCloseable {
    private val store = BundleStore(folder)
    private val shown = MutableStateFlow(Screen())
    private val lock = Any() // of these three; what only reads them goes without
    @Volatile private var model: Model? = null
    @Volatile private var conversation: Conversation? = null
    private var closed = false
    private var seed = 0L

    val screen: StateFlow<Screen> = shown.asStateFlow()

    /** Opens the bundle that was installed last, if there is one. */
    fun open(): Job = work {
        val bundle = withContext(Dispatchers.IO) { store.current() }
        if (bundle.isPresent) use(bundle.get())
    }

    /** Installs the bundle whose folder is at [address], and opens it. */
    fun install(address: String): Job = work {
        try {
            val bundle = store.download(URL("${address.trim().trimEnd('/')}/"), progress = { done, bytes ->
                shown.update { it.copy(downloaded = if (bytes > 0) done.toFloat() / bytes else 1f) }
            })
            use(bundle)
            withContext(Dispatchers.IO) { store.clean() }
        } finally {
            shown.update { it.copy(downloaded = null) }
        }
    }

    fun send(text: String): Job = work {
        val said = text.trim()
        val talk = conversation
        if (said.isEmpty() || talk == null) return@work
        withContext(Dispatchers.IO) { talk.say(Message.USER, said) }
        add(Shown(Message.USER, listOf(Piece(said, -1, 0, 0))))
        answer(talk)
    }

    /** The last answer once more, by another seed. */
    fun regenerate(): Job = work {
        val talk = conversation
        if (talk == null || shown.value.messages.lastOrNull()?.role != Message.ASSISTANT) return@work
        val stoppedInPrompt = shown.value.messages.last().pieces.isEmpty()
        if (!stoppedInPrompt) withContext(Dispatchers.IO) { talk.again() }
        shown.update { it.copy(messages = it.messages.dropLast(1)) }
        seed++
        answer(talk)
    }

    fun stop() {
        conversation?.stop()
    }

    /** Where tokens stop from now on; the conversation so far is read again with the next message. */
    fun choose(rule: String): Job = work { begin(rule) }

    /** Ends what is written, and gives the memory back; what is opened meanwhile is closed when it is there. */
    override fun close() = synchronized(lock) {
        closed = true
        keep(null, null)
    }

    /** Called by the thread that opened these, whose results a coroutine that was cancelled meanwhile would lose. */
    private fun keep(opened: Model?, begun: Conversation?): Unit = synchronized(lock) {
        conversation?.close()
        if (model !== opened) model?.close()
        model = opened
        conversation = begun
        if (closed && opened != null) keep(null, null)
    }

    private suspend fun use(bundle: Path) {
        val info = withContext(Dispatchers.IO) {
            Model.open(bundle.resolve("native/model.lanes")).also { keep(it, null) }.info()
        }
        val rules = (1 until info.depths()).map { "depth:$it" } + info.exits() + "never"
        shown.update { Screen(busy = true, ready = true, depths = info.depths(), rules = rules) }
        begin("never")
    }

    private suspend fun begin(rule: String) {
        val opened = model ?: return
        val options = ConversationOptions.DEFAULT.withExit(rule).withAnswerRoom(minOf(128, opened.info().contextLength() / 4))
        withContext(Dispatchers.IO) {
            val begun = opened.conversation(options)
            try {
                val said = conversation?.messages().orEmpty()
                if (said.isNotEmpty()) begun.chat(said)
            } catch (e: RuntimeException) {
                begun.close()
                throw e
            }
            keep(opened, begun)
        }
        shown.update { it.copy(rule = rule) }
    }

    private suspend fun answer(talk: Conversation) {
        add(Shown(Message.ASSISTANT, emptyList()))
        val options = AnswerOptions.atMost(512).withSampling(Sampling.at(0.8, seed))
        talk.pieces(options).collect { piece ->
            shown.update { it.copy(messages = it.messages.dropLast(1) + it.messages.last().plus(piece)) }
        }
    }

    private fun Shown.plus(piece: Piece) = copy(pieces = pieces + piece)

    private fun add(message: Shown) = shown.update { it.copy(messages = it.messages + message) }

    /** One thing at a time: while something runs, other buttons do nothing. What goes wrong is shown as its line. */
    private fun work(body: suspend () -> Unit): Job = scope.launch {
        if (shown.value.busy) return@launch
        shown.update { it.copy(busy = true, problem = null) }
        try {
            body()
        } catch (e: CancellationException) {
            throw e
        } catch (e: Exception) {
            shown.update { it.copy(problem = e.message ?: e.toString()) }
        } finally {
            shown.update { it.copy(busy = false) }
        }
    }
}
