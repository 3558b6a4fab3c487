package edgeloop.chat

import androidx.compose.foundation.layout.Arrangement
import androidx.compose.foundation.layout.Column
import androidx.compose.foundation.layout.Row
import androidx.compose.foundation.layout.fillMaxSize
import androidx.compose.foundation.layout.fillMaxWidth
import androidx.compose.foundation.layout.imePadding
import androidx.compose.foundation.layout.padding
import androidx.compose.foundation.layout.systemBarsPadding
import androidx.compose.foundation.lazy.LazyColumn
import androidx.compose.foundation.lazy.items
import androidx.compose.material3.Button
import androidx.compose.material3.LinearProgressIndicator
import androidx.compose.material3.MaterialTheme
import androidx.compose.material3.OutlinedTextField
import androidx.compose.material3.Slider
import androidx.compose.material3.Text
import androidx.compose.runtime.Composable
import androidx.compose.runtime.collectAsState
import androidx.compose.runtime.getValue
import androidx.compose.runtime.mutableFloatStateOf
import androidx.compose.runtime.mutableStateOf
import androidx.compose.runtime.remember
import androidx.compose.runtime.saveable.rememberSaveable
import androidx.compose.runtime.setValue
import androidx.compose.ui.Alignment
import androidx.compose.ui.Modifier
import androidx.compose.ui.graphics.Color
import androidx.compose.ui.res.stringResource
import androidx.compose.ui.text.AnnotatedString
import androidx.compose.ui.text.SpanStyle
import androidx.compose.ui.text.buildAnnotatedString
import androidx.compose.ui.text.withStyle
import androidx.compose.ui.unit.dp
import edgeloop.Message
import kotlin.math.roundToInt

/** A chat with a recursive model: each token in the colour of its depth. */
@Composable
fun ChatScreen(state: ChatState) {
    val screen by state.screen.collectAsState()
    Column(
        Modifier.fillMaxSize().systemBarsPadding().imePadding().padding(12.dp),
        verticalArrangement = Arrangement.spacedBy(8.dp),
    ) {
        LazyColumn(Modifier.weight(1f).fillMaxWidth(), reverseLayout = true, verticalArrangement = Arrangement.spacedBy(8.dp)) {
            items(screen.messages.asReversed()) { message ->
                Text(coloured(message, screen.depths))
            }
        }
        screen.problem?.let { Text(it, color = MaterialTheme.colorScheme.error) }
        screen.downloaded?.let { part -> LinearProgressIndicator(progress = { part }, modifier = Modifier.fillMaxWidth()) }
        if (screen.ready) {
            Exits(screen, state::choose)
            Entry(screen, state)
        } else {
            Installer(screen, state::install)
        }
    }
}

private fun coloured(message: Shown, depths: Int): AnnotatedString = buildAnnotatedString {
    for (piece in message.pieces) {
        val colour = if (message.role == Message.ASSISTANT) Color(depthColour(piece.depth, depths)) else Color.Unspecified
        withStyle(SpanStyle(color = colour)) { append(piece.text) }
    }
}

/** From fast on the left to full depth on the right; back where it was if the rule was refused. */
@Composable
private fun Exits(screen: Screen, choose: (String) -> Unit) {
    val last = screen.rules.lastIndex
    var place by remember(screen.rule, screen.problem) { mutableFloatStateOf(screen.rules.indexOf(screen.rule).toFloat()) }
    Row(verticalAlignment = Alignment.CenterVertically, horizontalArrangement = Arrangement.spacedBy(8.dp)) {
        Text(screen.rules[place.roundToInt()])
        Slider(
            value = place,
            onValueChange = { place = it },
            onValueChangeFinished = { choose(screen.rules[place.roundToInt()]) },
            valueRange = 0f..maxOf(last, 1).toFloat(),
            steps = maxOf(last - 1, 0),
            enabled = last > 0 && !screen.busy,
        )
    }
}

@Composable
private fun Entry(screen: Screen, state: ChatState) {
    var draft by rememberSaveable { mutableStateOf("") }
    Row(verticalAlignment = Alignment.CenterVertically, horizontalArrangement = Arrangement.spacedBy(8.dp)) {
        OutlinedTextField(
            value = draft,
            onValueChange = { draft = it },
            placeholder = { Text(stringResource(R.string.say_something)) },
            modifier = Modifier.weight(1f),
        )
        if (screen.busy) {
            Button(onClick = state::stop) { Text(stringResource(R.string.stop)) }
        } else {
            Button(onClick = { state.regenerate() }) { Text(stringResource(R.string.again)) }
            Button(
                onClick = {
                    state.send(draft)
                    draft = ""
                },
            ) { Text(stringResource(R.string.send)) }
        }
    }
}

@Composable
private fun Installer(screen: Screen, install: (String) -> Unit) {
    var address by rememberSaveable { mutableStateOf("") }
    OutlinedTextField(
        value = address,
        onValueChange = { address = it },
        placeholder = { Text(stringResource(R.string.bundle_address)) },
        modifier = Modifier.fillMaxWidth(),
    )
    Button(onClick = { install(address) }, enabled = !screen.busy) { Text(stringResource(R.string.download)) }
}
