package edgeloop

import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.channels.awaitClose
import kotlinx.coroutines.channels.trySendBlocking
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.channelFlow
import kotlinx.coroutines.launch
import kotlinx.coroutines.runInterruptible
import java.net.URL
import java.nio.file.Path
import java.util.function.Predicate

/**
 * An answer as a cold flow: it is written while it is collected, in a thread for blocking work, and waits for a slow
 * collector. To cancel the collection stops it; the flow ends when the engine has. [onEnd] gets how it went.
 */
fun Conversation.pieces(options: AnswerOptions, onEnd: (Answer) -> Unit = {}): Flow<Piece> = channelFlow {
    launch(Dispatchers.IO) {
        onEnd(answer(options) { piece -> trySendBlocking(piece).isSuccess })
        channel.close()
    }
    awaitClose { stop() }
}

/** [BundleStore.install] in a thread for blocking work; to cancel breaks it off, and the next one goes on. */
suspend fun BundleStore.download(
    base: URL,
    wanted: Predicate<String> = BundleStore.NATIVE,
    progress: BundleStore.Progress = BundleStore.Progress { _, _ -> },
): Path = runInterruptible(Dispatchers.IO) { install(base, wanted, progress) }
