import Foundation

/// Why a loop cannot go on, in one line.
public struct LoopProblem: Error, CustomStringConvertible {
    public let line: String
    public var description: String { line }

    init(_ line: String) { self.line = line }
}

/// What a depth loop of one's own has to know of a bundle's model: `program` of manifest.json (docs/bundle.md).
struct DepthProgram {
    typealias Object = [String: Any]

    /// R, the most tokens of a sequence, and V.
    let depths: Int
    let context: Int
    let vocabulary: Int
    /// Numbers of the state of a token.
    let width: Int
    /// Tokens with which a text ends.
    let ends: Set<Int>
    /// How many dims of a head are rotated, 0 for none, by which base; do neighbours turn against each other, or halves?
    let turned: Int
    let theta: Double
    let pairs: Bool
    private let stages: [String: [Object]]
    private let weights: Object

    /// Reads a manifest; `LoopProblem` for a model that a plain loop would run wrongly.
    init(_ url: URL) throws {
        let file = try Part(url)
        let format: Int = try file.known("format")
        guard format == 4 else {
            throw LoopProblem("\(url.path) has format \(format), this loop reads 4; export the checkpoint again")
        }
        let program = try file.part("program")
        let loop = try program.part("loop")
        let schedule: [Any] = try loop.known("schedule")
        let blocks: [Object] = try loop.known("blocks")
        let carries: [Object] = try loop.known("carries")
        depths = schedule.count
        context = try program.size("context_length")
        vocabulary = try program.size("vocab_size")
        ends = Set(try program.optional("eos_token_ids") ?? [])
        width = carries.compactMap { $0["width"] as? Int }.reduce(0, +)
        weights = try program.known("weights")
        var beyond: Set<String> = []
        if blocks.count > 1 { beyond.insert("several blocks in its loop") }
        if try program.optional("routing", as: Object.self) != nil {
            beyond.insert("a router, which decides how deep each token goes")
        }
        stages = [
            "prologue": try program.part("prologue").known("ops"),
            "block": try Part(blocks.first ?? [:], "the loop of \(url.path)").known("ops"),
            "epilogue": try program.part("epilogue").known("ops"),
        ]
        let ops = stages.values.joined()
        let rotates = ops.filter { $0["op"] as? String == "rotate" }
        let turns = rotates.map { ($0["by"] as? Object ?? [:], $0["pairs"] as? Bool ?? false) }
        if turns.contains(where: { there($0.0["scaling"]) }) { beyond.insert("scaled rotations") }
        if Set(turns.map { "\($0.0["dims"] ?? 0) \($0.0["theta"] ?? 0) \($0.1)" }).count > 1 {
            beyond.insert("rotations of several kinds")
        }
        for op in ops where op["op"] as? String != "rotate" && there(op["q"]) && there(op["k"]) {  // attention, but to learned keys
            if op["mask"] as? String ?? "causal" != "causal" { beyond.insert("tokens that see later ones") }
            if !there(op["cache"]) { beyond.insert("attention without K/V of earlier calls") }
            if op["slot"] as? String ?? "own" != "own" { beyond.insert("K/V that depths share") }
        }
        guard beyond.isEmpty else {
            let what = beyond.sorted().joined(separator: ", ")
            throw LoopProblem("\(url.path) is of a model with \(what): this loop knows none")
        }
        guard let (by, neighbours) = turns.first else {
            (turned, theta, pairs) = (0, 1, false)
            return
        }
        let turn = Part(by, "the rotation of \(url.path)")
        turned = try turn.size("dims")
        theta = try turn.known("theta")
        pairs = neighbours
    }

    /// The ops of a stage, in order: prologue, block or epilogue.
    func ops(_ stage: String) -> [Object] { stages[stage] ?? [] }

    /// By how much pair `pair` of a head turns at a position, in radians.
    func angle(_ position: Int, _ pair: Int) -> Double {
        Double(position) * pow(theta, -2 * Double(pair) / Double(turned))
    }

    /// Does anything that the block uses differ between depths?
    var differs: Bool {
        ops("block").contains { op in
            !there(op["at"])  // otherwise a depth's of its own
                && op.values.contains { value in
                    guard let weight = (value as? String).flatMap({ weights[$0] as? Object }) else { return false }
                    return ["rows", "copies", "deltas"].contains { there(weight[$0]) }
                }
        }
    }

    /// The token with the largest of the logits [V], the first of several.
    static func likeliest(_ logits: UnsafeBufferPointer<Float>) -> Int {
        logits.indices.reduce(0) { logits[$1] > logits[$0] ? $1 : $0 }
    }
}

/// An object of a file of JSON, and what to call it where it lacks something.
struct Part {
    let object: DepthProgram.Object
    let name: String

    init(_ object: DepthProgram.Object, _ name: String) {
        self.object = object
        self.name = name
    }

    init(_ url: URL) throws {
        let read = try? JSONSerialization.jsonObject(with: try Data(contentsOf: url)) as? DepthProgram.Object
        guard let read else { throw LoopProblem("\(url.path) is not there, or not JSON; copy the bundle again") }
        self.init(read, url.path)
    }

    func known<T>(_ key: String) throws -> T {
        guard let found = try optional(key, as: T.self) else {
            throw LoopProblem("\(name) has no \(key); export the checkpoint again")
        }
        return found
    }

    /// A number of tokens, numbers or heads, so small that products of three of them have room in an Int.
    func size(_ key: String) throws -> Int {
        let found: Int = try known(key)
        guard (1...1 << 20).contains(found) else {
            throw LoopProblem("\(name) has \(key) \(found), wanted 1 to \(1 << 20); copy the bundle again")
        }
        return found
    }

    func part(_ key: String) throws -> Part { Part(try known(key), "\(key) of \(name)") }

    /// nil for what is not there, or null.
    func optional<T>(_ key: String, as type: T.Type = T.self) throws -> T? {
        guard let found = object[key], there(found) else { return nil }
        guard let right = found as? T else {
            throw LoopProblem("\(name) has \(key) of another kind; export the checkpoint again")
        }
        return right
    }
}

/// Is it there, and not null?
private func there(_ value: Any?) -> Bool { !(value == nil || value is NSNull) }
