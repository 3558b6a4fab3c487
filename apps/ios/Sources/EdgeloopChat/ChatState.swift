import Edgeloop
import Foundation
import Observation

/// A token on the screen: its text and how deep it went.
struct ShownPiece: Identifiable {
    let id: Int
    let text: String
    let depth: Int
}

/// A message on the screen; an answer has its tokens.
struct ShownMessage: Identifiable {
    let id: Int
    let role: Message.Role
    var text: String
    var pieces: [ShownPiece] = []
}

/// What the chat screen shows, and what its buttons do.
@MainActor
@Observable
final class ChatState {
    private(set) var shown: [ShownMessage] = []
    private(set) var answering = false
    private(set) var problem: String?
    let depths: Int
    /// Calibrated rules, and full depth.
    let rules: [String]
    var rule: String {
        didSet { choose() }
    }
    private let host: any ConversationHost
    private var task: Task<Void, Never>?
    private var seed: UInt64 = 0

    init(_ host: any ConversationHost) {
        self.host = host
        depths = host.depths
        let fixed = (1..<max(host.depths, 1)).map { "depth:\($0)" }
        rules = fixed + host.exits + ["never"]
        rule = "never"
    }

    func send(_ text: String) {
        let said = text.trimmingCharacters(in: .whitespacesAndNewlines)
        guard !answering, !said.isEmpty else { return }
        attempt {
            try host.say(.user, said)
            shown.append(ShownMessage(id: shown.count, role: .user, text: said))
            answer()
        }
    }

    /// The last answer once more, by another seed.
    func regenerate() {
        guard !answering, shown.last?.role == .assistant else { return }
        attempt {
            do {
                try host.again()
            } catch _ where shown.last?.pieces.isEmpty == true {
                // Stopped in its prompt it is none yet to the lane engine, which goes on with it.
            }
            shown.removeLast()
            seed += 1
            answer()
        }
    }

    func stop() { host.stop() }

    private func choose() {
        guard !answering else { return }
        attempt { try host.exit(rule) }
    }

    private func answer() {
        answering = true
        let place = shown.count
        shown.append(ShownMessage(id: place, role: .assistant, text: ""))
        var options = AnswerOptions()
        options.maxTokens = 512
        options.temperature = 0.8
        options.seed = seed
        task = Task {
            do {
                for try await piece in host.answer(options) {
                    shown[place].text += piece.text
                    shown[place].pieces.append(
                        ShownPiece(id: shown[place].pieces.count, text: piece.text, depth: piece.depth))
                }
            } catch {
                problem = String(describing: error)
            }
            answering = false
        }
    }

    private func attempt(_ work: () throws -> Void) {
        do {
            problem = nil
            try work()
        } catch {
            problem = String(describing: error)
        }
    }
}
