package edgeloop.chat

import edgeloop.AnswerOptions
import edgeloop.Model
import edgeloop.Piece
import edgeloop.pieces
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.cancel
import kotlinx.coroutines.cancelAndJoin
import kotlinx.coroutines.coroutineScope
import kotlinx.coroutines.flow.take
import kotlinx.coroutines.flow.toList
import kotlinx.coroutines.isActive
import kotlinx.coroutines.launch
import kotlinx.coroutines.runBlocking
import kotlinx.coroutines.yield
import java.io.File
import java.nio.file.Path
import java.nio.file.Paths

/** What tests/apps/test_android_kotlin.py runs on a desktop's JVM: the chat without its screen, and answers as flows. */
object ChatCheck {
    @JvmStatic
    fun main(words: Array<String>) {
        val (folder, address) = words
        runBlocking {
            flows(Paths.get(words[2]))
            ChatState(this, Paths.get(folder)).use { chat(it, address) }
            left(Paths.get(folder))
        }
    }

    private suspend fun chat(state: ChatState, address: String) {
        state.open().join()
        println("ready: ${state.screen.value.ready}")
        state.install("$address/nowhere").join()
        println("problem: ${state.screen.value.problem?.replace(address, "SITE")}")
        state.install(address).join()
        println("ready: ${state.screen.value.ready} ${state.screen.value.rules.joinToString(" ")} ${state.screen.value.problem}")
        state.send("  ").join()
        state.send("Tell me a tale.").join()
        val first = state.screen.value
        println("roles: ${first.messages.joinToString(" ") { it.role }} ${first.problem}")
        println("text: ${first.messages.last().text.replace("\n", "\\n")}")
        state.regenerate().join()
        val second = state.screen.value
        println("another: ${second.messages.size} ${second.messages.last().text != first.messages.last().text}")
        state.choose("depth:1").join()
        state.send("And then?").join()
        val third = state.screen.value
        println("depth: ${third.rule} ${third.messages.last().pieces.map { it.depth }.toSet()} ${third.problem}")
        state.choose("sometimes").join()
        println("still: ${state.screen.value.rule} ${state.screen.value.problem != null}")
        stopped(state)
    }

    /** By a stop before the first token, as far as that can be had: it is asked for again and again. */
    private suspend fun stopped(state: ChatState) = coroutineScope {
        val stops = launch(Dispatchers.Default) { while (isActive) state.stop() }
        state.send("Once upon a time there was a tale. ".repeat(16)).join()
        stops.cancelAndJoin()
        val pieces = state.screen.value.messages.last().pieces.size
        state.regenerate().join()
        val messages = state.screen.value.messages
        println("stopped: ${pieces < 32} ${messages.last().pieces.isNotEmpty()} ${messages.size} ${state.screen.value.problem}")
    }

    /** Closed while a model is opened: it is mapped no more. */
    private suspend fun left(folder: Path) {
        val scope = CoroutineScope(Dispatchers.Default)
        val state = ChatState(scope, folder)
        val before = mapped()
        val opening = state.open()
        while (!mapped() && opening.isActive) yield()
        scope.cancel()
        state.close()
        opening.join()
        println("left: $before ${mapped()}")
    }

    private fun mapped() = File("/proc/self/maps").readText().contains("model.lanes")

    private suspend fun flows(file: Path) {
        Model.open(file).use { model ->
            model.conversation().use { conversation ->
                conversation.append("Once upon a time")
                var finish = ""
                val all = conversation.pieces(AnswerOptions.atMost(24)) { finish = it.finish().name }.toList()
                println("flow: ${all.joinToString("") { it.text }.replace("\n", "\\n")}|$finish ${all.size}")
                conversation.again()
                val some = conversation.pieces(AnswerOptions.atMost(400).withEndless(true)).take(3).toList()
                println("taken: ${some.map(Piece::token) == all.take(3).map(Piece::token)} ${conversation.length() < 100}")
            }
        }
    }
}
