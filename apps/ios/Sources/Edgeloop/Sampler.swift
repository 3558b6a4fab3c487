import Foundation

/// From logits to a token: the likeliest, or one drawn at a temperature from the most likely ones.
public struct Sampler {
    public var temperature: Float
    public var topK: Int
    private var random = SystemRandomNumberGenerator()

    /// A temperature of 0 always takes the likeliest token; a `topK` of 0 draws from all of them.
    public init(temperature: Float = 0, topK: Int = 0) {
        self.temperature = temperature
        self.topK = topK
    }

    public mutating func sample(_ logits: [Float]) -> Int32 {
        let order = logits.indices.sorted { logits[$0] > logits[$1] }
        guard temperature > 0 else { return Int32(order[0]) }
        let kept = topK > 0 ? Array(order.prefix(topK)) : order
        let weights = kept.map { exp((logits[$0] - logits[order[0]]) / temperature) }
        var left = Float.random(in: 0..<1, using: &random) * weights.reduce(0, +)
        for (token, weight) in zip(kept, weights) {
            left -= weight
            if left < 0 { return Int32(token) }
        }
        return Int32(kept[kept.count - 1])
    }
}
