import CEdgeloop
import Edgeloop
import Foundation

/// A conversation on the lane engine. Calls take turns in a queue of its own; `stop` ends the answer that is being written.
public final class LaneConversation: ConversationHost, @unchecked Sendable {
    public let model: LaneModel
    private let queue = DispatchQueue(label: "edgeloop.conversation")
    private let kv: el_kv
    private let gate = NSLock()  // of what `stop` reads, which waits for no turn
    private var context: OpaquePointer?
    private var answering = false
    private var stopping = false

    public init(_ model: LaneModel, exit: String = "never", kv: el_kv = EL_KV_F16) throws {
        self.model = model
        self.kv = kv
        context = try Self.make(model, exit, kv)
    }

    deinit { el_context_free(context) }

    public var depths: Int { model.depths }
    public var exits: [String] { model.exits }
    public var messages: [Message] { queue.sync { Self.messages(of: context) } }

    /// K and V depend on the rule: the conversation is read again at the next answer.
    public func exit(_ rule: String) throws {
        try queue.sync {
            let fresh = try Self.make(model, rule, kv)
            do {
                let texts = Self.messages(of: context).flatMap { [$0.role.rawValue, $0.content] }
                try withCStrings(texts) { pointers in
                    let given = stride(from: 0, to: pointers.count, by: 2).map {
                        el_message(role: pointers[$0], content: pointers[$0 + 1])
                    }
                    guard !given.isEmpty else { return }
                    try check { el_context_chat(fresh, given, UInt32(given.count), $0) }
                }
            } catch {
                el_context_free(fresh)
                throw error
            }
            gate.withLock {
                el_context_free(context)
                context = fresh
            }
        }
    }

    public func say(_ role: Message.Role, _ content: String) throws {
        try queue.sync { try check { el_context_say(context, role.rawValue, content, $0) } }
    }

    public func again() throws {
        try queue.sync { try check { el_context_again(context, $0) } }
    }

    public func stop() {
        gate.withLock {
            guard answering else { return }
            stopping = true
            el_context_stop(context)
        }
    }

    public func answer(_ options: AnswerOptions) -> AsyncThrowingStream<Piece, any Error> {
        AsyncThrowingStream { continuation in
            continuation.onTermination = { [weak self] how in
                if case .cancelled = how { self?.stop() }
            }
            queue.async {
                do {
                    try self.write(options, continuation)
                    continuation.finish()
                } catch {
                    continuation.finish(throwing: error)
                }
            }
        }
    }

    private func write(_ given: AnswerOptions, _ continuation: AsyncThrowingStream<Piece, any Error>.Continuation) throws {
        gate.withLock {
            stopping = false
            answering = true
        }
        defer { gate.withLock { answering = false } }
        var sampling = el_sampling()
        sampling.struct_bytes = UInt32(MemoryLayout<el_sampling>.size)
        sampling.temperature = given.temperature
        sampling.top_k = UInt32(max(given.topK, 0))
        sampling.top_p = 1
        sampling.seed = given.seed
        let box = Unmanaged.passRetained(Receiver(continuation))
        defer { box.release() }
        try withCStrings(given.stops) { stops in
            try withUnsafePointer(to: sampling) { sampling in
                try stops.withUnsafeBufferPointer { stops in
                    var options = el_answer_options()
                    options.struct_bytes = UInt32(MemoryLayout<el_answer_options>.size)
                    options.max_tokens = UInt32(max(given.maxTokens, 0))
                    options.stops_count = UInt32(stops.count)
                    options.stops = stops.baseAddress
                    options.sampling = sampling
                    var found = el_answer()
                    found.struct_bytes = UInt32(MemoryLayout<el_answer>.size)
                    // A stop that came when the answer before this one had just ended is not for this one.
                    repeat {
                        try check { el_context_answer(context, &options, onPiece, box.toOpaque(), &found, $0) }
                    } while found.why == UInt32(EL_WHY_STOPPED.rawValue) && found.tokens == 0 && !stopped()
                }
            }
        }
    }

    private func stopped() -> Bool { gate.withLock { stopping } }

    private static func make(_ model: LaneModel, _ exit: String, _ kv: el_kv) throws -> OpaquePointer? {
        var made: OpaquePointer?
        try exit.withCString { rule in
            var options = el_context_options()
            options.struct_bytes = UInt32(MemoryLayout<el_context_options>.size)
            options.kv = UInt32(kv.rawValue)
            options.answer_room = UInt32(min(128, model.contextLength / 4))
            options.exit = rule
            try check { el_context_new(model.model, model.text, &options, &made, $0) }
        }
        return made
    }

    private static func messages(of context: OpaquePointer?) -> [Message] {
        var count = 0
        guard el_context_length(context, nil, &count, nil) == Int32(EL_OK.rawValue) else { return [] }
        return (0..<count).compactMap { number in
            var found = el_message()
            guard el_context_message(context, number, &found, nil) == Int32(EL_OK.rawValue),
                let role = found.role.flatMap({ Message.Role(rawValue: String(cString: $0)) })
            else { return nil }
            return Message(role, found.content.map { String(cString: $0) } ?? "")
        }
    }
}

/// Who gets the tokens of an answer, as a C function can hold it.
private final class Receiver {
    let continuation: AsyncThrowingStream<Piece, any Error>.Continuation

    init(_ continuation: AsyncThrowingStream<Piece, any Error>.Continuation) {
        self.continuation = continuation
    }
}

/// Called by the library for each token; not 0: no more.
private func onPiece(_ user: UnsafeMutableRawPointer?, _ piece: UnsafePointer<el_piece>?) -> Int32 {
    guard let user, let piece = piece?.pointee else { return 1 }
    let receiver = Unmanaged<Receiver>.fromOpaque(user).takeUnretainedValue()
    let text = string(piece.utf8, piece.bytes)
    let given = receiver.continuation.yield(Piece(text: text, token: piece.token, depth: Int(piece.depth)))
    if case .terminated = given { return 1 }
    return 0
}
