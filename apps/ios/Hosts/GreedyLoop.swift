/// A sequence that a depth loop of one's own writes greedily: what it has so far, and who may come next. `OnnxLoop` and
/// `PteLoop` run the tokens; not for several threads at once.
public class GreedyLoop {
    /// R: how many depths there are.
    public final var depths: Int { program.depths }
    /// Tokens with which a text ends.
    public final var ends: Set<Int> { program.ends }
    /// Tokens of the sequence so far.
    public private(set) final var cached = 0
    let program: DepthProgram
    /// Tokens that there is room for.
    let capacity: Int
    private var complete = 0  // of the tokens, the first ones that ran all depths
    private var reach: Int  // to which depth all of them have K/V

    /// `capacity`: as `room` has it.
    init(_ program: DepthProgram, capacity: Int) {
        self.program = program
        self.capacity = capacity
        reach = program.depths
    }

    /// The tokens that there is room for where `capacity` are asked for: at most those of the model's context.
    static func room(_ capacity: Int, _ program: DepthProgram) throws -> Int {
        guard capacity > 0 else { throw LoopProblem("room for \(capacity) tokens, wanted 1 or more") }
        return min(capacity, program.context)
    }

    /// Runs `ids` behind the tokens so far through so many depths; the most likely token behind them.
    func pass(_ ids: [Int], _ count: Int) throws -> Int { fatalError("a loop has its own") }

    /// Only the first `tokens` stay: what comes next is written over the others.
    public final func back(_ tokens: Int) {
        cached = min(cached, max(tokens, 0))
        if cached <= complete { reach = depths }
        complete = min(complete, cached)
    }

    /// The most likely token behind `ids`, which follow on the tokens so far and run all depths. Tokens that left early have
    /// no K/V deeper down: go `back` to before them, and give them again in the prompt.
    public final func prompt(_ ids: [Int]) throws -> Int {
        guard !ids.isEmpty else { throw LoopProblem("no tokens to go on from; give at least one") }
        return try next(ids, depths)
    }

    /// The most likely token behind `id`, a token of an answer, which leaves after `count` depths.
    public final func step(_ id: Int, depths count: Int) throws -> Int {
        guard (1...depths).contains(count) else { throw LoopProblem("depths \(count), and the model has \(depths)") }
        return try next([id], count)
    }

    private func next(_ ids: [Int], _ count: Int) throws -> Int {
        guard count <= reach else {
            let early = "\(cached - complete) tokens left early"
            throw LoopProblem("\(early); go back to \(complete) and begin the prompt with them")
        }
        guard ids.count <= capacity - cached else {
            throw LoopProblem("\(cached + ids.count) tokens, and there is room for \(capacity)")
        }
        if let id = ids.first(where: { !(0..<program.vocabulary).contains($0) }) {
            throw LoopProblem("token \(id) is not in the vocabulary of \(program.vocabulary)")
        }
        let found = try pass(ids, count)
        cached += ids.count
        reach = count
        if count == depths { complete = cached }
        return found
    }
}
