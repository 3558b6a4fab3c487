import ExecuTorch
import Foundation

/// The depth loop over the methods of a bundle's .pte, greedy, for one sequence, a token a call: the smallest host on
/// ExecuTorch's Swift API. What the runner in apps/board/native does besides, prompts in chunks, is left out.
///
/// To copy into an app with `GreedyLoop`, `DepthProgram` and `EmbeddingRows`. Inputs and outputs as docs/in-your-app.md has
/// them.
public final class PteLoop: GreedyLoop {
    private static let masked: Float = -1e9

    private let embedding: EmbeddingRows
    private let module: Module
    private let memory: Shared
    private var stages: [Stage] = []
    private let head: Stage

    /// Opens the bundle's program, with K/V for `capacity` tokens at most. `LoopProblem` for a model that this loop would
    /// run wrongly.
    public init(bundle: URL, capacity: Int) throws {
        let program = try DepthProgram(bundle.appendingPathComponent("manifest.json"))
        let folder = bundle.appendingPathComponent("executorch")
        let layout = try Part(folder.appendingPathComponent("layout.json"))
        let sizes = try layout.part("sizes")
        try Self.check(layout, sizes)
        let rows = max(2, try Self.room(capacity, program))  // methods take caches from 2 rows on
        embedding = try EmbeddingRows(folder, layout)
        let file = folder.appendingPathComponent(try layout.known("program")).path
        let data: [String] = try layout.optional("data") ?? []
        let weights = data.map { folder.appendingPathComponent($0).path }
        module = Module(filePath: file, dataFilePaths: weights, loadMode: .mmap)
        memory = Shared(program, width: try sizes.size("width"), capacity: rows)
        let layer = Cache.Shape(heads: try sizes.size("kv_heads"), capacity: rows, dim: try sizes.size("head_dim"))
        let methods = try module.methodNames()
        if methods.contains("prologue_m1") { stages.append(Stage("prologue", 0, program, memory, layer)) }
        for depth in 0..<program.depths { stages.append(Stage("block", depth, program, memory, layer)) }
        if methods.contains("epilogue_m1") { stages.append(Stage("epilogue", 0, program, memory, layer)) }
        head = Stage("head", 0, program, memory, layer)
        super.init(program, capacity: rows)
    }

    private static func check(_ layout: Part, _ sizes: Part) throws {
        let others: [Any] = try sizes.optional("beyond") ?? []
        var beyond = others.map { "\($0)" }
        if try sizes.optional("window", as: Int.self) != nil { beyond.append("a sliding window") }
        guard beyond.isEmpty else {
            throw LoopProblem("the bundle has \(beyond.joined(separator: ", ")): this loop knows none")
        }
    }

    override func pass(_ ids: [Int], _ count: Int) throws -> Int {
        for (i, id) in ids.enumerated() { try run(id, cached + i, count) }
        let logits: [Value] = try module.execute(head.method, head.inputs)
        return try head.read(logits, 0, program.vocabulary) { DepthProgram.likeliest($0) }
    }

    /// One token through all stages: its state is the head's then.
    private func run(_ id: Int, _ at: Int, _ count: Int) throws {
        embedding.row(id, memory.state.numbers)
        for i in 0..<program.turned / 2 {
            let angle = program.angle(at, i)
            let one = program.pairs ? 2 * i : i
            let other = program.pairs ? one + 1 : program.turned / 2 + i
            for place in [one, other] { memory.cos.numbers[place] = Float(Foundation.cos(angle)) }
            memory.sin.numbers[one] = Float(-Foundation.sin(angle))
            memory.sin.numbers[other] = Float(Foundation.sin(angle))
        }
        let mask = memory.mask.numbers
        for i in mask.indices { mask[i] = i <= at ? 0 : Self.masked }  // its own row is the first
        for stage in stages where stage.depth < count {  // the depth loop
            try stage.run(module, at)
        }
    }
}

/// Numbers that stay where they are, and a tensor over them.
private final class Memory {
    let numbers: UnsafeMutableBufferPointer<Float>
    let tensor: AnyTensor

    init(_ shape: Int...) {
        numbers = .allocate(capacity: shape.reduce(1, *))
        numbers.initialize(repeating: 0)
        tensor = AnyTensor(bytesNoCopy: UnsafeMutableRawPointer(numbers.baseAddress!), shape: shape, dataType: .float)
    }

    deinit { numbers.deallocate() }
}

/// What every stage is given.
private final class Shared {
    let state: Memory
    let depth: Memory
    let cos: Memory
    let sin: Memory
    let mask: Memory

    init(_ program: DepthProgram, width: Int, capacity: Int) {
        state = Memory(1, width)
        depth = Memory(1, program.depths)
        cos = Memory(1, 1, max(1, program.turned))
        sin = Memory(1, 1, max(1, program.turned))
        mask = Memory(1, 1, 1 + capacity)
    }
}

/// Keys or values of a layer, at a depth.
private struct Cache {
    struct Shape {
        let heads, capacity, dim: Int
    }

    let shape: Shape
    let memory: Memory

    init(_ shape: Shape) {
        self.shape = shape
        memory = Memory(shape.heads, shape.capacity, shape.dim)
    }

    /// Puts the row of a token [1, heads, dim] where it belongs.
    func put(_ row: UnsafeBufferPointer<Float>, _ at: Int) {
        for (i, number) in row.enumerated() {
            memory.numbers[(i / shape.dim * shape.capacity + at) * shape.dim + i % shape.dim] = number
        }
    }
}

/// A method at a depth, and its K/V.
private final class Stage {
    let method: String
    let depth: Int
    let inputs: [AnyTensor]
    private let shared: Shared
    private let caches: [Cache]  // of each layer keys and values

    init(_ kind: String, _ depth: Int, _ program: DepthProgram, _ shared: Shared, _ layer: Cache.Shape) {
        method = "\(kind)_m1"
        self.depth = depth
        self.shared = shared
        let ops = kind == "head" ? [] : program.ops(kind)
        let layers = Set(ops.compactMap { $0["cache"] as? Int })
        caches = (0..<2 * layers.count).map { _ in Cache(layer) }
        var given = [shared.state.tensor]
        if kind == "block" && program.depths > 1 && program.differs { given.append(shared.depth.tensor) }
        if ops.contains(where: { $0["op"] as? String == "rotate" }) { given += [shared.cos.tensor, shared.sin.tensor] }
        if !layers.isEmpty { given.append(shared.mask.tensor) }
        inputs = given + caches.map(\.memory.tensor)
    }

    func run(_ module: Module, _ at: Int) throws {
        for i in shared.depth.numbers.indices { shared.depth.numbers[i] = i == depth ? 1 : 0 }
        let outputs: [Value] = try module.execute(method, inputs)
        guard outputs.count == 1 + caches.count else {
            throw LoopProblem("\(method) gives other outputs than this loop knows; export the checkpoint again")
        }
        let state = shared.state.numbers
        try read(outputs, 0, state.count) { _ = state.update(fromContentsOf: $0) }
        for (i, cache) in caches.enumerated() {
            try read(outputs, 1 + i, cache.shape.heads * cache.shape.dim) { cache.put($0, at) }
        }
    }

    /// Gives `body` the `size` numbers of an output, which are ExecuTorch's own.
    func read<Result>(_ outputs: [Value], _ number: Int, _ size: Int, _ body: (UnsafeBufferPointer<Float>) -> Result) throws
        -> Result
    {
        var found: Result?
        if number < outputs.count {
            outputs[number].anyTensor?.bytes { pointer, count, type in
                guard type == .float, count == size else { return }
                found = body(UnsafeBufferPointer(start: pointer.assumingMemoryBound(to: Float.self), count: count))
            }
        }
        guard let found else {
            throw LoopProblem("\(method) gives other numbers than this loop knows; export the checkpoint again")
        }
        return found
    }
}
