import Foundation
import OnnxRuntimeBindings

/// The depth loop over a bundle's ONNX graphs, greedy, for one sequence: the smallest host on ONNX Runtime's Swift package.
///
/// The twin of `OnnxLoop.java` in apps/android/hosts, which the tests run. To copy into an app; inputs and outputs as
/// docs/in-your-app.md has them. Never compiled.
public final class OnnxLoop {
    /// What is wrong, in one line.
    public struct Problem: Error { public let line: String }

    /// How many depths there are.
    public let depths: Int
    /// Tokens with which a text ends.
    public let ends: Set<Int>
    /// Tokens of the sequence so far.
    public private(set) var cached = 0
    private let environment: ORTEnv
    private let capacity: Int
    private let vocabulary: Int
    private let width: Int
    private let prologue: Graph
    private let block: Graph
    private let epilogue: Graph
    private var complete = 0  // of the tokens, the first ones that ran all depths
    private var reach: Int  // to which depth all of them have K/V

    /// Opens the three graphs of the bundle's folder, with K/V for `capacity` tokens at most.
    public init(bundle: URL, capacity: Int, threads: Int32) throws {
        let data = try Data(contentsOf: bundle.appendingPathComponent("manifest.json"))
        let manifest = try JSONSerialization.jsonObject(with: data) as? [String: Any] ?? [:]
        guard manifest["format"] as? Int == 4, let program = manifest["program"] as? [String: Any],
            let loop = program["loop"] as? [String: Any], let blocks = loop["blocks"] as? [[String: Any]],
            let schedule = loop["schedule"] as? [Int], let carries = loop["carries"] as? [[String: Any]],
            let context = program["context_length"] as? Int, let vocabulary = program["vocab_size"] as? Int
        else { throw Problem(line: "no manifest of format 4; export the checkpoint again") }
        guard blocks.count == 1, program["routing"] == nil || program["routing"] is NSNull else {
            throw Problem(line: "the model has a router or several blocks, and this loop knows none")
        }
        let stages = ["prologue": program["prologue"], "block": blocks[0], "epilogue": program["epilogue"]]
        let ops = stages.mapValues { ($0 as? [String: Any])?["ops"] as? [[String: Any]] ?? [] }
        let attends = ops.values.joined().filter { $0["q"] != nil && $0["k"] != nil }
        guard
            attends.allSatisfy({
                ($0["mask"] as? String ?? "causal") == "causal" && ($0["slot"] as? String ?? "own") == "own"
                    && $0["cache"] is Int
            })
        else { throw Problem(line: "the model has attention that is not causal or shares K/V, and this loop knows none") }
        let turns = Set(ops.values.joined().compactMap { $0["by"] as? NSDictionary })
        guard turns.count <= 1, turns.allSatisfy({ $0["scaling"] == nil || $0["scaling"] is NSNull }) else {
            throw Problem(line: "the model has scaled rotations or several kinds, and this loop knows none")
        }
        depths = schedule.count
        reach = depths
        ends = Set(program["eos_token_ids"] as? [Int] ?? [])
        width = carries.compactMap { $0["width"] as? Int }.reduce(0, +)
        self.vocabulary = vocabulary
        self.capacity = min(capacity, context)
        environment = try ORTEnv(loggingLevel: .warning)
        let options = try ORTSessionOptions()
        try options.setIntraOpNumThreads(threads)
        var tables: [String: ORTValue] = [:]
        if let by = turns.first, let dims = by["dims"] as? Int, let theta = by["theta"] as? Double {
            let half = dims / 2
            let angles = (0..<self.capacity * half).map {
                Double($0 / half) * pow(theta, -2.0 * Double($0 % half) / Double(dims))
            }
            tables["cos"] = try OnnxLoop.tensor(angles.map { Float(cos($0)) }, .float, [self.capacity, half])
            tables["sin"] = try OnnxLoop.tensor(angles.map { Float(sin($0)) }, .float, [self.capacity, half])
        }
        let (environment, rows) = (self.environment, self.capacity)
        func graph(_ name: String, slots: Int) throws -> Graph {
            let path = bundle.appendingPathComponent("onnx/\(name).onnx").path  // weights.safetensors is found beside it
            let session = try ORTSession(env: environment, modelPath: path, sessionOptions: options)
            return try Graph(session, ops: ops[name] ?? [], slots: slots, capacity: rows, tables: tables)
        }
        prologue = try graph("prologue", slots: 1)
        block = try graph("block", slots: schedule.count)
        epilogue = try graph("epilogue", slots: 1)
    }

    /// Only the first `tokens` stay: what comes next is written over the others.
    public func back(_ tokens: Int) {
        cached = min(cached, max(tokens, 0))
        if cached <= complete { reach = depths }
        complete = min(complete, cached)
    }

    /// The most likely token behind `ids`, which follow on the tokens so far and run all depths. Tokens that left early have
    /// no K/V deeper down: go `back` to before them, and give them again in the prompt.
    public func prompt(_ ids: [Int]) throws -> Int { try next(ids, depths) }

    /// The most likely token behind `id`, a token of an answer, which leaves after `count` depths.
    public func step(_ id: Int, depths count: Int) throws -> Int { try next([id], count) }

    private func next(_ ids: [Int], _ count: Int) throws -> Int {
        guard (1...depths).contains(count), !ids.isEmpty, ids.allSatisfy({ (0..<vocabulary).contains($0) }) else {
            throw Problem(line: "no tokens, one that the vocabulary of \(vocabulary) has not, or not 1 to \(depths) depths")
        }
        guard count <= reach else {
            throw Problem(line: "\(cached - complete) tokens left early; go back to \(complete) and begin with them")
        }
        guard ids.count <= capacity - cached else {
            throw Problem(line: "\(cached + ids.count) tokens, and there is room for \(capacity)")
        }
        let found = try pass(ids, count)
        cached += ids.count
        reach = count
        if count == depths { complete = cached }
        return found
    }

    private func pass(_ ids: [Int], _ count: Int) throws -> Int {
        let (new, end) = (ids.count, Int32(cached + ids.count))
        let common = [
            "positions": try OnnxLoop.tensor((0..<new).map { Int64(cached + $0) }, .int64, [1, new]),
            "tokens": try OnnxLoop.tensor([Int32(new)], .int32, [1]),
            "last": try OnnxLoop.tensor([end - 1], .int32, [1]),
            "longest": try OnnxLoop.tensor([end], .int32, [1]),
        ]
        func run(_ graph: Graph, _ depth: Int, _ own: [String: ORTValue], gives shape: [Int]) throws -> ORTValue {
            let out = try OnnxLoop.tensor([Float](repeating: 0, count: shape.reduce(1, *)), .float, shape)
            let number = ["depth": try OnnxLoop.tensor([Int64(depth)], .int64, [1])]
            try graph.run(common.merging(own) { $1 }.merging(number) { $1 }, depth, out)
            return out
        }
        let tokens = try OnnxLoop.tensor(ids.map(Int64.init), .int64, [1, new])
        var state = try run(prologue, 0, ["ids": tokens], gives: [1, new, width])
        for depth in 0..<count {  // the depth loop
            state = try run(block, depth, ["state": state], gives: [1, new, width])
        }
        let rows = try OnnxLoop.tensor([Int64(new - 1)], .int64, [1])
        let logits = try run(epilogue, 0, ["state": state, "rows": rows], gives: [1, vocabulary]).tensorData() as Data
        return logits.withUnsafeBytes { bytes in
            let values = bytes.bindMemory(to: Float.self)
            return values.indices.reduce(0) { values[$1] > values[$0] ? $1 : $0 }
        }
    }

    static func tensor<T>(_ values: [T], _ type: ORTTensorElementDataType, _ shape: [Int]) throws -> ORTValue {
        let data = values.withUnsafeBytes { NSMutableData(bytes: $0.baseAddress, length: $0.count) }
        return try ORTValue(tensorData: data, elementType: type, shape: shape.map { NSNumber(value: $0) })
    }
}

/// A graph, and the K/V of its slots: one for each depth of the block, one elsewhere.
private final class Graph {
    private let session: ORTSession
    private let inputs: Set<String>
    private let output: String  // state, next or logits
    private let tables: [String: ORTValue]
    private var past: [[String: ORTValue]] = []
    private var present: [[String: ORTValue]] = []  // over the same memory: new rows are written in place

    init(_ session: ORTSession, ops: [[String: Any]], slots: Int, capacity: Int, tables: [String: ORTValue]) throws {
        self.session = session
        self.tables = tables
        inputs = Set(try session.inputNames())
        output = try session.outputNames().first { !$0.hasPrefix("present.") } ?? ""
        let known: Set = [
            "ids", "state", "depth", "rows", "positions", "tokens", "last", "longest", "cos", "sin",
        ]
        if let other = inputs.first(where: { !$0.hasPrefix("past.") && !known.contains($0) }) {
            throw OnnxLoop.Problem(line: "the graph takes \(other), which this loop does not know")
        }
        for _ in 0..<slots {
            var (read, written): ([String: ORTValue], [String: ORTValue]) = ([:], [:])
            for op in ops {
                guard let cache = op["cache"] as? Int, let heads = op["kv_heads"] as? Int, let dim = op["head_dim"] as? Int,
                    let memory = NSMutableData(length: 4 * heads * capacity * dim),  // zeros
                    let other = NSMutableData(length: memory.length)
                else { continue }
                let shape = [1, heads, capacity, dim].map { NSNumber(value: $0) }
                for (kind, data) in [("key", memory), ("value", other)] {
                    let name = "\(cache).\(kind)"
                    read["past." + name] = try ORTValue(tensorData: data, elementType: .float, shape: shape)
                    written["present." + name] = try ORTValue(tensorData: data, elementType: .float, shape: shape)
                }
            }
            past.append(read)
            present.append(written)
        }
    }

    func run(_ given: [String: ORTValue], _ depth: Int, _ out: ORTValue) throws {
        let all = given.merging(tables) { $1 }.merging(past[depth]) { $1 }.filter { inputs.contains($0.key) }
        try session.run(withInputs: all, outputs: present[depth].merging([output: out]) { $1 }, runOptions: nil)
    }
}
