import Edgeloop
import SwiftUI

/// A chat with a recursive model: each token in the colour of its depth.
struct ChatScreen: View {
    @Bindable var state: ChatState
    @State private var draft = ""
    @State private var chosen = 1.0

    var body: some View {
        VStack(spacing: 12) {
            messages
            if let problem = state.problem {
                Text(problem).foregroundStyle(.red).font(.footnote)
            }
            exits
            entry
        }
        .padding()
    }

    private var messages: some View {
        ScrollView {
            LazyVStack(alignment: .leading, spacing: 8) {
                ForEach(state.shown) { message in
                    coloured(message)
                        .padding(8)
                        .background(message.role == .user ? Color.accentColor.opacity(0.15) : .clear)
                        .clipShape(RoundedRectangle(cornerRadius: 8))
                }
            }
        }
        .defaultScrollAnchor(.bottom)
    }

    /// From fast on the left to full depth on the right.
    private var exits: some View {
        HStack {
            Text(state.rule).font(.footnote).monospaced()
            Slider(value: $chosen, in: 0...1) { editing in
                guard !editing else { return }
                let last = Double(state.rules.count - 1)
                state.rule = state.rules[Int((chosen * last).rounded())]
            }
            .disabled(state.answering || state.rules.count < 2)
        }
    }

    private var entry: some View {
        HStack {
            TextField("Say something", text: $draft).onSubmit(send)
            if state.answering {
                Button("Stop") { state.stop() }
            } else {
                Button("Again") { state.regenerate() }
                Button("Send", action: send)
            }
        }
    }

    private func coloured(_ message: ShownMessage) -> Text {
        guard message.role == .assistant else { return Text(message.text) }
        return message.pieces.reduce(Text("")) { text, piece in
            text + Text(piece.text).foregroundStyle(depthColour(piece.depth, of: state.depths))
        }
    }

    private func send() {
        state.send(draft)
        draft = ""
    }
}

/// From blue, where a token stopped first, to red at full depth.
func depthColour(_ depth: Int, of depths: Int) -> Color {
    let share = depths > 1 ? Double(depth - 1) / Double(depths - 1) : 1
    return Color(hue: 0.62 * (1 - min(max(share, 0), 1)), saturation: 0.75, brightness: 0.75)
}
