import Foundation

/// A conversation on Core ML: the depths are driven by `DepthLoop`, texts are another's (`TextCodec`).
public final class CoreMLConversation: ConversationHost, @unchecked Sendable {
    public let depths: Int
    public let exits: [String]
    private let model: RecursiveModel
    private let loop: DepthLoop
    private let codec: any TextCodec
    private let lock = NSLock()  // of what follows
    private var said: [Message] = []
    private var cached: [Int64] = []
    private var running: Task<Void, Never>?

    public init(_ model: RecursiveModel, codec: any TextCodec) throws {
        self.model = model
        self.codec = codec
        loop = try DepthLoop(model)
        depths = model.depths
        exits = model.exitNames
    }

    public var messages: [Message] { lock.withLock { said } }

    public func exit(_ rule: String) throws {
        let words = rule.split(separator: ":", maxSplits: 1)
        let found: ExitRule
        if rule == "never" {
            found = .never
        } else if words.count == 2, words[0] == "depth", let count = Int(words[1]), count > 0 {
            found = .depth(count)
        } else {
            found = try model.exitRule(rule)
        }
        try lock.withLock {
            guard running == nil else { throw EdgeloopError.answering }
            loop.rule = found
        }
    }

    public func say(_ role: Message.Role, _ content: String) throws {
        try lock.withLock {
            guard running == nil else { throw EdgeloopError.answering }
            said.append(Message(role, content))
        }
    }

    public func again() throws {
        try lock.withLock {
            guard running == nil else { throw EdgeloopError.answering }
            guard said.last?.role == .assistant else { throw EdgeloopError.noAnswer }
            said.removeLast()
        }
    }

    public func stop() { lock.withLock { running }?.cancel() }

    public func answer(_ options: AnswerOptions) -> AsyncThrowingStream<Piece, any Error> {
        AsyncThrowingStream { continuation in
            lock.withLock {
                guard running == nil else {
                    continuation.finish(throwing: EdgeloopError.answering)
                    return
                }
                let task = Task {
                    let found = await self.write(options) { continuation.yield($0) }
                    self.lock.withLock { self.running = nil }
                    continuation.finish(throwing: found)
                }
                running = task
                continuation.onTermination = { _ in task.cancel() }
            }
        }
    }

    /// Reads what is new, and writes behind it; what went wrong, if anything did. A stop is none.
    private func write(_ options: AnswerOptions, _ give: (Piece) -> Void) async -> (any Error)? {
        var text = ""
        do {
            let conversation = messages
            let prompt = try codec.encode(try codec.render(conversation), addSpecial: false)
            let writer = try codec.writer(prompt: prompt, stops: options.stops)
            var logits = try await read(prompt)
            var sampler = Sampler(temperature: Float(options.temperature), topK: options.topK)
            var written = 0
            var depth = depths
            while !Task.isCancelled {
                let token = Int64(sampler.sample(logits))
                if model.specification.eosTokenIds.contains(Int(token)) {
                    give(Piece(text: "", token: token, depth: depth))
                    break
                }
                let (piece, stopped) = try writer.push(token)
                text += piece
                give(Piece(text: piece, token: token, depth: depth))
                written += 1
                let full = loop.position >= model.specification.contextLength
                if stopped || full || written == options.maxTokens { break }
                logits = try await loop.decode(Int32(token))
                depth = loop.depthsRun
                lock.withLock { cached.append(token) }
            }
            let rest = try writer.end()
            text += rest
            if !rest.isEmpty { give(Piece(text: rest, token: -1, depth: depth)) }
            lock.withLock { said.append(Message(.assistant, text)) }
            return nil
        } catch {
            if !text.isEmpty { lock.withLock { said.append(Message(.assistant, text)) } }
            return error is CancellationError ? nil : error
        }
    }

    /// The logits behind `prompt`; what it has in common with what the states hold is not run again.
    private func read(_ prompt: [Int64]) async throws -> [Float] {
        let before = lock.withLock { cached }
        let common = min(zip(before, prompt).prefix { $0 == $1 }.count, max(prompt.count - 1, 0))
        loop.seek(common)
        lock.withLock { cached.removeLast(cached.count - common) }
        let logits = try await loop.prefill(prompt[common...].map(Int32.init))
        lock.withLock { cached = prompt }
        return logits
    }
}
