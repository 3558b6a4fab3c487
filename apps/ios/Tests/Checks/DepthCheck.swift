import Edgeloop
import Foundation

// What tests/apps/test_swift.py runs of the loop on Core ML: a package, how many tokens to write, and the tokens of a prompt. Of each
// line that it reads, a rule and its thresholds, or a name alone as the package has it, it writes the tokens and their depths.

@main
struct DepthCheck {
    static func main() async throws {
        let words = CommandLine.arguments
        let model = try await RecursiveModel(package: URL(fileURLWithPath: words[1]))
        let prompt = words[3...].map { Int32($0)! }
        while let line = readLine() {
            let loop = try DepthLoop(model)
            do {
                loop.rule = try rule(line.split(separator: " ").map(String.init), model)
                var logits = try await loop.prefill(prompt)
                var sampler = Sampler(temperature: 0, topK: 0)
                var steps: [String] = []
                for _ in 0..<Int(words[2])! {
                    let token = sampler.sample(logits)
                    logits = try await loop.decode(Int32(token))
                    steps.append("\(token):\(loop.depthsRun)")
                }
                print(steps.joined(separator: " "))
            } catch {
                print(error)
            }
        }
    }

    static func rule(_ words: [String], _ model: RecursiveModel) throws -> ExitRule {
        if words == ["never"] { return .never }
        if words[0] == "depth" { return .depth(Int(words[1])!) }
        if words.count == 1 { return try model.exitRule(words[0]) }
        return .when(Measure(rawValue: words[0])!, passes: words.dropFirst().map { Float($0)! })
    }
}
