import Foundation

/// What a depth made of a token, as one number that a threshold can be held against.
public enum Measure: String, CaseIterable, Sendable {
    case confidence, margin, entropy, kl, entropyDiff = "entropy-diff", stable, latent, gate, probe

    /// Does a token leave when the number is high? Otherwise when it is low.
    var leavesWhenHigh: Bool {
        switch self {
        case .confidence, .margin, .stable, .gate, .probe: true
        case .entropy, .kl, .entropyDiff, .latent: false
        }
    }

    /// Must every depth be read out?
    var readsLogits: Bool {
        switch self {
        case .confidence, .margin, .entropy, .kl, .entropyDiff, .stable: true
        case .latent, .gate, .probe: false
        }
    }
}

/// After which depth a token stops. `edgeloop calibrate` finds thresholds: `RecursiveModel.exitRule`.
public struct ExitRule: Sendable {
    let measure: Measure?
    let thresholds: [Float]
    let stop: Int

    /// Every token runs every depth.
    public static let never = ExitRule(measure: nil, thresholds: [], stop: .max)

    /// Every token runs `count` depths.
    public static func depth(_ count: Int) -> ExitRule {
        ExitRule(measure: nil, thresholds: [], stop: max(count, 1))
    }

    /// Leave after depth d when `measure` passes the threshold d; there is one for each depth but the last.
    public static func when(_ measure: Measure, passes thresholds: [Float]) -> ExitRule {
        ExitRule(measure: measure, thresholds: thresholds, stop: .max)
    }
}

/// What the package's metadata say of exits.
struct ExitDescription: Decodable {
    let rules: [String: CalibratedRule]
    let heads: [String: Head]
}

struct CalibratedRule: Decodable {
    let thresholds: [Float]
    /// The policy for skipped K/V that the thresholds were measured with.
    let missing: String
}

/// Weights that the host itself multiplies with: float32, little-endian.
struct Head: Decodable {
    let shape: [Int]
    let data: Data  // JSONDecoder reads base64

    var numbers: [Float] {
        data.withUnsafeBytes { raw in
            stride(from: 0, to: raw.count, by: 4).map { raw.loadUnaligned(fromByteOffset: $0, as: Float.self) }
        }
    }
}

/// The decisions about one token, depth by depth.
struct Judge {
    private let rule: ExitRule
    private let weight: [Float]
    private let bias: [Float]
    private var before: [Float]
    private var oldLogits: [Float] = []
    private var stay: Float = 1
    private var sameFor: Float = 0

    /// `entered`: the state that enters depth 0.
    init(_ rule: ExitRule, heads: [String: [Float]], entered: [Float]) throws {
        self.rule = rule
        let name = rule.measure.map(\.rawValue) ?? ""
        weight = heads["\(name).weight"] ?? []
        bias = heads["\(name).bias"] ?? []
        if rule.measure == .gate || rule.measure == .probe, weight.isEmpty {
            throw EdgeloopError.noRule("\(name): the package has no head for it")
        }
        // A row of weights and a number for each depth of a probe, one of each for the gate.
        guard weight.count == bias.count * entered.count else {
            throw EdgeloopError.noRule("\(name): \(weight.count) weights, wanted \(bias.count) × \(entered.count)")
        }
        before = entered
    }

    /// Does the token stop after `depth`, which made `state`? `logits` are those of a rule that reads them.
    mutating func leaves(_ depth: Int, _ state: [Float], _ logits: [Float]) -> Bool {
        guard let measure = rule.measure else { return depth + 1 >= rule.stop }
        guard depth < rule.thresholds.count, measure != .probe || depth < bias.count else { return false }
        let score = score(measure, depth, state, logits)
        before = state
        oldLogits = logits
        return measure.leavesWhenHigh ? score >= rule.thresholds[depth] : score <= rule.thresholds[depth]
    }

    private mutating func score(_ measure: Measure, _ depth: Int, _ x: [Float], _ logits: [Float]) -> Float {
        switch measure {
        case .confidence:
            return exp(logSoftmax(logits).max() ?? 0)
        case .margin:
            let top = logSoftmax(logits).sorted(by: >)
            return exp(top[0]) - exp(top[1])
        case .entropy:
            return entropy(logits)
        case .kl:
            if oldLogits.isEmpty { return .infinity }
            return zip(logSoftmax(oldLogits), logSoftmax(logits)).reduce(0) { $0 + exp($1.0) * ($1.0 - $1.1) }
        case .entropyDiff:
            return oldLogits.isEmpty ? .infinity : abs(entropy(logits) - entropy(oldLogits))
        case .stable:
            sameFor = !oldLogits.isEmpty && likeliest(logits) == likeliest(oldLogits) ? sameFor + 1 : 0
            return sameFor
        case .latent:
            let moved = zip(x, before).map { $0 - $1 }
            return dot(moved, moved).squareRoot() / (dot(x, x).squareRoot() + 1e-6)
        case .gate:
            stay *= sigmoid(-(dot(x, weight) + bias[0]))
            return 1 - stay
        case .probe:
            let rms = (dot(x, x) / Float(x.count) + 1e-6).squareRoot()
            let own = weight[(depth * x.count)..<((depth + 1) * x.count)]
            return sigmoid(dot(x, own) / rms + bias[depth])
        }
    }
}

private func dot(_ a: [Float], _ b: some Sequence<Float>) -> Float { zip(a, b).reduce(0) { $0 + $1.0 * $1.1 } }

private func sigmoid(_ x: Float) -> Float { tanh(x / 2) / 2 + 0.5 }

private func entropy(_ logits: [Float]) -> Float { -logSoftmax(logits).reduce(0) { $0 + exp($1) * $1 } }

/// The first of the largest.
private func likeliest(_ logits: [Float]) -> Int? { logits.firstIndex(of: logits.max() ?? 0) }

private func logSoftmax(_ logits: [Float]) -> [Float] {
    let largest = logits.max() ?? 0
    let sum = log(logits.reduce(0) { $0 + exp($1 - largest) })
    return logits.map { $0 - largest - sum }
}
