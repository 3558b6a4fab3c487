import Edgeloop
import EdgeloopNative
import Foundation
import Observation

// What tests/apps/test_swift.py runs of the chat's state, on the lane engine: what its screen would show after each button.

@main
@MainActor
struct ChatCheck {
    static func main() async throws {
        let lanes = try LaneModel(URL(fileURLWithPath: CommandLine.arguments[1]), threads: 1)
        let chat = ChatState(try LaneConversation(lanes))
        print("rules: \(chat.rules) of \(chat.depths)")
        let changes = Changes()
        withObservationTracking { _ = chat.answering } onChange: { changes.note() }
        chat.send("  ")
        print("nothing: \(chat.shown.count) \(chat.answering)")
        chat.rule = "depth:1"
        chat.send("Tell me a tale. ")
        print("sent: \(chat.shown.map(\.role.rawValue)) \(chat.answering) \(changes.seen)")
        chat.send("And then?")
        print("meanwhile: \(chat.shown.count)")
        while chat.shown.last!.pieces.count < 5 { try await Task.sleep(for: .milliseconds(1)) }
        chat.stop()
        try await ended(chat)
        let first = chat.shown.last!
        print("stopped: \(Set(first.pieces.map(\.depth)).sorted()) \(first.text == first.pieces.map(\.text).joined())")
        chat.regenerate()
        print("again: \(chat.shown.map(\.role.rawValue)) \(chat.shown.last!.pieces.count)")
        while chat.shown.last!.pieces.count < 5 { try await Task.sleep(for: .milliseconds(1)) }
        chat.stop()
        try await ended(chat)
        print("another: \(chat.shown.last!.text.prefix(12) != first.text.prefix(12)) \(chat.problem ?? "no problem")")
        // By a stop in the prompt, as far as that can be had: it is asked for again and again.
        chat.send(String(repeating: "Once upon a time there was a tale. ", count: 16))
        while chat.answering {
            chat.stop()
            try await Task.sleep(for: .microseconds(50))
        }
        let early = chat.shown.last!.pieces.count < 32
        chat.regenerate()
        while chat.answering, chat.shown.last!.pieces.count < 5 { try await Task.sleep(for: .milliseconds(1)) }
        chat.stop()
        try await ended(chat)
        let last = chat.shown.last!
        print("early: \(early) \(chat.shown.map(\.role.rawValue)) \(!last.pieces.isEmpty) \(chat.problem ?? "no problem")")
        chat.rule = "depth:9"
        print("problem: \(chat.problem ?? "none")")
    }

    static func ended(_ chat: ChatState) async throws {
        while chat.answering { try await Task.sleep(for: .milliseconds(1)) }
    }
}

final class Changes: @unchecked Sendable {
    private let lock = NSLock()
    private var count = 0
    var seen: Int { lock.withLock { count } }
    func note() { lock.withLock { count += 1 } }
}
