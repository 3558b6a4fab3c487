import Foundation

/// A message of a conversation.
public struct Message: Equatable, Sendable {
    public enum Role: String, Sendable {
        case system, user, assistant
    }

    public let role: Role
    public let content: String

    public init(_ role: Role, _ content: String) {
        self.role = role
        self.content = content
    }
}

/// How an answer is written, and when it ends.
public struct AnswerOptions: Sendable {
    /// Tokens at most; 0: until there is no room for more.
    public var maxTokens = 0
    /// 0: the likeliest token, and nothing below counts.
    public var temperature = 0.0
    /// Of so many likeliest tokens; 0: of all.
    public var topK = 0
    /// What is drawn follows from it, where the host can do that.
    public var seed: UInt64 = 0
    /// Texts that end the answer, and are cut off.
    public var stops: [String] = []

    public init() {}
}

/// A token of an answer.
public struct Piece: Sendable {
    /// What the token completes: whole characters, or nothing yet.
    public let text: String
    public let token: Int64
    /// Depths that were run for it.
    public let depth: Int

    public init(text: String, token: Int64, depth: Int) {
        self.text = text
        self.token = token
        self.depth = depth
    }
}

/// One conversation with a recursive model, whatever runs it: the lane engine (`LaneConversation`) or Core ML
/// (`CoreMLConversation`). An app is written against this.
public protocol ConversationHost: AnyObject, Sendable {
    /// R: how many depths a token may run.
    var depths: Int { get }
    /// The exit rules that were calibrated, by the names that `exit` takes, beside "never" and "depth:N".
    var exits: [String] { get }
    var messages: [Message] { get }

    /// Where tokens stop from now on, as `edgeloop run --exit` has it: "never", "depth:2", a calibrated rule's name.
    func exit(_ rule: String) throws
    /// A message behind those of the conversation; an answer to one becomes the assistant's message by itself.
    func say(_ role: Message.Role, _ content: String) throws
    /// The answer as it is written. To end the iteration, or to cancel its task, stops it.
    func answer(_ options: AnswerOptions) -> AsyncThrowingStream<Piece, any Error>
    /// The last answer is forgotten, so that `answer` gives another one, by another seed.
    func again() throws
    /// Ends the answer that is being written, from any thread.
    func stop()
}

/// What a host that only knows tokens needs to speak: the model's tokenizer and its turns.
public protocol TextCodec: Sendable {
    /// `addSpecial`: with the tokens that stand around a text.
    func encode(_ text: String, addSpecial: Bool) throws -> [Int64]
    /// The conversation as the model's chat template writes it, with the opening of the assistant's turn.
    func render(_ messages: [Message]) throws -> String
    func writer(prompt: [Int64], stops: [String]) throws -> any TextWriter
}

/// Turns the tokens of an answer into whole characters.
public protocol TextWriter: AnyObject {
    /// What `token` makes certain, and whether a stop string has come.
    func push(_ token: Int64) throws -> (text: String, stopped: Bool)
    /// What was held back.
    func end() throws -> String
}
