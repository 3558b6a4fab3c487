import Foundation
import OnnxRuntimeBindings

/// The depth loop over a bundle's ONNX graphs, greedy, for one sequence: the smallest host on ONNX Runtime's Swift package.
///
/// To copy into an app with `GreedyLoop` and `DepthProgram`; inputs and outputs as docs/in-your-app.md has them.
public final class OnnxLoop: GreedyLoop {
    private let environment: ORTEnv
    private let prologue: Graph
    private let block: Graph
    private let epilogue: Graph

    /// Opens the three graphs of the bundle's folder, with K/V for `capacity` tokens at most; `threads`: 0 as many as there
    /// are cores. `LoopProblem` for a model that this loop would run wrongly.
    public init(bundle: URL, capacity: Int, threads: Int32) throws {
        let program = try DepthProgram(bundle.appendingPathComponent("manifest.json"))
        let environment = try ORTEnv(loggingLevel: .warning)
        let options = try ORTSessionOptions()
        try options.setIntraOpNumThreads(threads)
        let rows = try Self.room(capacity, program)
        var tables: [String: ORTValue] = [:]
        if program.turned > 0 {
            let half = program.turned / 2
            let angles = (0..<rows * half).map { program.angle($0 / half, $0 % half) }
            tables["cos"] = try tensor(angles.map { Float(cos($0)) }, .float, [rows, half])
            tables["sin"] = try tensor(angles.map { Float(sin($0)) }, .float, [rows, half])
        }
        let turns = tables
        func graph(_ name: String, slots: Int) throws -> Graph {
            let path = bundle.appendingPathComponent("onnx/\(name).onnx").path  // weights.safetensors is found beside it
            let session = try ORTSession(env: environment, modelPath: path, sessionOptions: options)
            return try Graph(session, ops: program.ops(name), slots: slots, capacity: rows, tables: turns)
        }
        prologue = try graph("prologue", slots: 1)
        block = try graph("block", slots: program.depths)
        epilogue = try graph("epilogue", slots: 1)
        self.environment = environment
        super.init(program, capacity: rows)
    }

    override func pass(_ ids: [Int], _ count: Int) throws -> Int {
        let (new, end) = (ids.count, Int32(cached + ids.count))
        let common = [
            "positions": try tensor((0..<new).map { Int64(cached + $0) }, .int64, [1, new]),
            "tokens": try tensor([Int32(new)], .int32, [1]),
            "last": try tensor([end - 1], .int32, [1]),
            "longest": try tensor([end], .int32, [1]),
        ]
        func run(_ graph: Graph, _ depth: Int, _ own: [String: ORTValue], gives shape: [Int]) throws -> ORTValue {
            let out = try tensor([Float](repeating: 0, count: shape.reduce(1, *)), .float, shape)
            let number = ["depth": try tensor([Int64(depth)], .int64, [1])]
            try graph.run(common.merging(own) { $1 }.merging(number) { $1 }, depth, out)
            return out
        }
        let tokens = try tensor(ids.map(Int64.init), .int64, [1, new])
        var state = try run(prologue, 0, ["ids": tokens], gives: [1, new, program.width])
        for depth in 0..<count {  // the depth loop
            state = try run(block, depth, ["state": state], gives: [1, new, program.width])
        }
        let rows = try tensor([Int64(new - 1)], .int64, [1])
        let logits = try run(epilogue, 0, ["state": state, "rows": rows], gives: [1, program.vocabulary])
        return Data(referencing: try logits.tensorData()).withUnsafeBytes {
            DepthProgram.likeliest($0.bindMemory(to: Float.self))
        }
    }
}

private func tensor<T>(_ values: [T], _ type: ORTTensorElementDataType, _ shape: [Int]) throws -> ORTValue {
    let (data, sizes) = (bytes(values), shape.map { NSNumber(value: $0) })
    return try ORTValue(tensorData: data, elementType: type, shape: sizes)
}

private func bytes<T>(_ values: [T]) -> NSMutableData {
    values.withUnsafeBytes { NSMutableData(bytes: $0.baseAddress, length: $0.count) }
}

/// A graph, and the K/V of its slots: one for each depth of the block, one elsewhere.
private final class Graph {
    private let session: ORTSession
    private let inputs: Set<String>
    private let output: String  // state, next or logits
    private let tables: [String: ORTValue]
    private var past: [[String: ORTValue]] = []
    private var present: [[String: ORTValue]] = []  // over the same memory: new rows are written in place

    init(_ session: ORTSession, ops: [DepthProgram.Object], slots: Int, capacity: Int, tables: [String: ORTValue]) throws {
        self.session = session
        self.tables = tables
        inputs = Set(try session.inputNames())
        output = try session.outputNames().first { !$0.hasPrefix("present.") } ?? ""
        let known: Set = [
            "ids", "state", "depth", "rows", "positions", "tokens", "last", "longest", "cos", "sin",
        ]
        if let other = inputs.first(where: { !$0.hasPrefix("past.") && !known.contains($0) }) {
            throw LoopProblem("the graph takes \(other), which this loop does not know")
        }
        for _ in 0..<slots {
            var (read, written): ([String: ORTValue], [String: ORTValue]) = ([:], [:])
            for op in ops.map({ Part($0, "an op with K/V") }) {
                guard let cache: Int = try op.optional("cache"), op.object["kv_heads"] != nil else { continue }
                let (heads, dim) = (try op.size("kv_heads"), try op.size("head_dim"))
                let shape = [1, heads, capacity, dim].map { NSNumber(value: $0) }
                for kind in ["key", "value"] {
                    let memory = bytes([Float](repeating: 0, count: heads * capacity * dim))
                    let name = "\(cache).\(kind)"
                    read["past." + name] = try ORTValue(tensorData: memory, elementType: .float, shape: shape)
                    written["present." + name] = try ORTValue(tensorData: memory, elementType: .float, shape: shape)
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
