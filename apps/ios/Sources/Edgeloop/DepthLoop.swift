import CoreML

/// One sequence: a prompt in chunks, then token by token, each through as many depths as it needs.
public final class DepthLoop {
    /// Which tokens stop early; where the model cannot (`RecursiveModel.canExit`) every token runs all depths.
    public var rule = ExitRule.never
    /// Tokens that the states hold.
    public private(set) var position = 0
    /// Depths that the last token ran.
    public private(set) var depthsRun = 0
    private let model: RecursiveModel
    private let state: MLState

    public init(_ model: RecursiveModel) throws {
        self.model = model
        state = try model.makeState()
    }

    /// Goes back to the first `tokens` tokens: rows of the states behind them do not count.
    public func seek(_ tokens: Int) {
        position = min(position, max(tokens, 0))
    }

    /// A prompt; the logits of its last token.
    ///
    /// A call that throws leaves `position` where it was: what it wrote behind it is not seen, and is written again.
    public func prefill(_ tokens: [Int32]) async throws -> [Float] {
        try makeRoom(for: tokens.count)
        var last: [Float16] = []
        var end = position
        for start in stride(from: 0, to: tokens.count, by: model.chunk) {
            let part = tokens[start..<min(start + model.chunk, tokens.count)]
            // The padding leaves rows behind the last valid one, which the next call overwrites before they are seen.
            let ids = Array(part) + Array(repeating: 0, count: model.chunk - part.count)
            let features = [
                FeatureName.ids: try integers(ids, shape: [1, model.chunk]),
                FeatureName.position: try integers([Int32(end)], shape: [1]),
            ]
            let out = try array(try await model.call(FunctionName.prefill, features, state), FeatureName.next)
            let width = model.specification.hiddenSize
            last = Array(MLShapedArray<Float16>(out).scalars[((part.count - 1) * width)..<(part.count * width)])
            end += part.count
        }
        guard end > 0, !last.isEmpty else { return [] }
        let hidden = MLMultiArray(MLShapedArray<Float16>(scalars: last, shape: [1, 1, last.count]))
        let logits = try await readOut(hidden, try integers([Int32(end - 1)], shape: [1]))
        position = end
        return logits
    }

    /// One token through the depths; its logits. After a call that throws, the same token can be tried again.
    public func decode(_ token: Int32) async throws -> [Float] {
        try makeRoom(for: 1)
        let (logits, ran) = try await run(token)
        position += 1
        depthsRun = ran
        return logits
    }

    /// The logits of a token at `position`, and the depths that it ran.
    private func run(_ token: Int32) async throws -> (logits: [Float], depths: Int) {
        let place = try integers([Int32(position)], shape: [1])
        let ids = try integers([token], shape: [1, 1])
        let inputs = [FeatureName.ids: ids, FeatureName.position: place]
        let everyDepth = rule.measure == nil && rule.stop >= model.depths
        if everyDepth || !model.canExit {
            let out = try await model.call(FunctionName.decodeAll, inputs, state)
            let logits = try floats(out, FeatureName.logits)
            return (logits, model.depths)
        }
        var hidden = try array(try await model.call(FunctionName.embed, inputs, state), FeatureName.hidden)
        var judge = try Judge(rule, heads: model.heads, entered: numbers(hidden))
        let reads = rule.measure?.readsLogits ?? false
        for depth in 0..<model.depths {
            let features = [FeatureName.hidden: hidden, FeatureName.position: place]
            let out = try await model.call(FunctionName.decode(depth), features, state)
            hidden = try array(out, FeatureName.next)
            guard depth < model.depths - 1 else { break }
            let logits = reads ? try await readOut(hidden, place) : []
            guard judge.leaves(depth, numbers(hidden), logits) else { continue }
            if model.canFill {
                let left = [FeatureName.hidden: hidden, FeatureName.position: place]
                _ = try await model.call(FunctionName.fill(leftAfter: depth), left, state)
            }
            let chosen = reads ? logits : try await readOut(hidden, place)
            return (chosen, depth + 1)
        }
        let logits = try await readOut(hidden, place)
        return (logits, model.depths)
    }

    /// Layers behind the loop write K/V here; when a token goes deeper after all, the deeper ones replace them.
    private func readOut(_ hidden: MLMultiArray, _ place: MLMultiArray) async throws -> [Float] {
        let features = [FeatureName.hidden: hidden, FeatureName.position: place]
        return try floats(try await model.call(FunctionName.head, features, state), FeatureName.logits)
    }

    private func makeRoom(for count: Int) throws {
        let capacity = model.specification.contextLength
        guard position + count <= capacity else { throw EdgeloopError.contextFull(capacity: capacity) }
    }

    private func integers(_ values: [Int32], shape: [Int]) throws -> MLMultiArray {
        MLMultiArray(MLShapedArray<Int32>(scalars: values, shape: shape))
    }

    private func array(_ out: MLFeatureProvider, _ name: String) throws -> MLMultiArray {
        guard let value = out.featureValue(for: name)?.multiArrayValue else {
            throw EdgeloopError.notAPackage("no output \(name)")
        }
        return value
    }

    private func floats(_ out: MLFeatureProvider, _ name: String) throws -> [Float] {
        numbers(try array(out, name))
    }

    private func numbers(_ array: MLMultiArray) -> [Float] {
        MLShapedArray<Float16>(array).scalars.map(Float.init)
    }
}
