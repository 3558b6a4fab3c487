import Edgeloop
import EdgeloopNative
import Foundation

// What tests/apps/test_swift.py runs of both hosts: a part, and lanes MODEL, or coreml PACKAGE TEXT. Each writes lines.

@main
struct ConversationCheck {
    static func main() async throws {
        let words = CommandLine.arguments
        let file = URL(fileURLWithPath: words.last!)
        if words[2] == "coreml" {
            let model = try await RecursiveModel(package: URL(fileURLWithPath: words[3]))
            try await talk(try CoreMLConversation(model, codec: try TextFile(file)))
            return
        }
        let lanes = try LaneModel(file, threads: 1)
        switch words[1] {
        case "answers": try await answers(lanes)
        case "talk": try await talk(try LaneConversation(lanes))
        case "rules": try await rules(try LaneConversation(lanes), lanes)
        default: fatalError(words[1])
        }
    }

    /// Of each line "exit|temperature|topK|seed|most|stop|message" the tokens, their depths and the text.
    static func answers(_ lanes: LaneModel) async throws {
        while let line = readLine() {
            let words = line.split(separator: "|", omittingEmptySubsequences: false).map(String.init)
            let host = try LaneConversation(lanes)
            try host.exit(words[0])
            var options = AnswerOptions()
            options.temperature = Double(words[1])!
            options.topK = Int(words[2])!
            options.seed = UInt64(words[3])!
            options.maxTokens = Int(words[4])!
            options.stops = words[5].isEmpty ? [] : [words[5]]
            try host.say(.user, words[6])
            tell(try await all(host.answer(options)))
        }
    }

    /// Two turns, the second by another rule; then the second anew; then what the conversation is.
    static func talk(_ host: any ConversationHost) async throws {
        var options = AnswerOptions()
        options.maxTokens = 16
        try host.say(.user, "Tell me a tale.")
        tell(try await all(host.answer(options)))
        try host.exit("depth:2")
        try host.say(.user, "And then?")
        tell(try await all(host.answer(options)))
        try host.again()
        tell(try await all(host.answer(options)))
        for message in host.messages { print("\(message.role.rawValue): \(shown(message.content))") }
        print(host.depths, host.exits)
    }

    /// What is refused, and how an answer ends before its end.
    static func rules(_ host: any ConversationHost, _ lanes: LaneModel) async throws {
        refused("exit") { try host.exit("depth:none") }
        refused("again") { try host.again() }
        refused("file") { _ = try LaneModel(URL(fileURLWithPath: "/nowhere/model.lanes")) }
        let smile = "A caf\u{e9} \u{1f642}\u{0} \u{6f22}"
        let ids = try lanes.encode(smile, addSpecial: false)
        let writer = try lanes.writer(prompt: [], stops: [])
        print("smile: \(try ids.map { try writer.push($0).text }.joined() + writer.end() == smile) \(ids)")
        try host.say(.user, "Tell me a tale.")
        var count = 0
        for try await _ in host.answer(AnswerOptions()) {
            count += 1
            if count == 3 { host.stop() }
        }
        print("stopped: \(count < 40) \(host.messages.map(\.role.rawValue))")
        try await settled(host)
        count = 0
        for try await _ in host.answer(AnswerOptions()) {
            count += 1
            if count == 3 { break }  // a loop that is left stops the answer, too
        }
        try await settled(host)
        print("left: \(count) \(host.messages.map(\.role.rawValue))")
        let task = Task {
            var count = 0
            for try await _ in host.answer(AnswerOptions()) { count += 1 }
            return count
        }
        try await Task.sleep(for: .milliseconds(20))
        task.cancel()
        let found = try await task.value
        try await settled(host)
        print("cancelled: \(found < 400)")
        var options = AnswerOptions()
        options.maxTokens = 5
        tell(try await all(host.answer(options)))
    }

    /// The answer is forgotten, once it has ended.
    static func settled(_ host: any ConversationHost) async throws {
        for _ in 0..<2000 {
            do {
                try host.again()
                return
            } catch EdgeloopError.answering {
                try await Task.sleep(for: .milliseconds(1))
            }
        }
        fatalError("an answer without an end")
    }

    static func refused(_ name: String, _ work: () throws -> Void) {
        do {
            try work()
            print("\(name): done")
        } catch {
            print("\(name): \(error)")
        }
    }

    static func all(_ answer: AsyncThrowingStream<Piece, any Error>) async throws -> [Piece] {
        var pieces: [Piece] = []
        for try await piece in answer { pieces.append(piece) }
        return pieces
    }

    static func tell(_ pieces: [Piece]) {
        let tokens = pieces.map { "\($0.token)" }.joined(separator: ",")
        let depths = pieces.map { "\($0.depth)" }.joined(separator: ",")
        print("\(tokens)|\(depths)|\(shown(pieces.map(\.text).joined()))")
    }

    static func shown(_ text: String) -> String { text.replacingOccurrences(of: "\n", with: "\\n") }
}
