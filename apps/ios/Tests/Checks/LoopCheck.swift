import Foundation

// What tests/apps/test_swift_loops.py runs of a loop, as LoopCheck.java in apps/android does: a bundle, room for how many
// tokens, how many depths those of an answer run (0: all), how many to write, and the tokens of a prompt. It writes the
// answer, then the one behind the prompt's last token given again, then the one behind a prompt that came token by token.

@main
struct LoopCheck {
    static func main() throws {
        let words = CommandLine.arguments
        let numbers = words.dropFirst(2).map { Int($0)! }
        let (capacity, depths, count, prompt) = (numbers[0], numbers[1], numbers[2], Array(numbers[3...]))
        do {
            let loop = try opened(URL(fileURLWithPath: words[1]), capacity)
            try answer(loop, try loop.prompt(prompt), depths, count)
            loop.back(prompt.count - 1)
            try answer(loop, try loop.prompt([prompt.last!]), depths, count)
            loop.back(0)
            for id in prompt.dropLast() { _ = try loop.prompt([id]) }
            try answer(loop, try loop.prompt([prompt.last!]), depths, count)
            if depths > 0 { _ = try loop.prompt([prompt.last!]) }  // behind tokens that left early
        } catch let problem as LoopProblem {
            print(problem)
        }
    }

    static func answer(_ loop: GreedyLoop, _ first: Int, _ depths: Int, _ count: Int) throws {
        var tokens = [first]
        while tokens.count < count, !loop.ends.contains(tokens.last!) {
            tokens.append(try loop.step(tokens.last!, depths: depths == 0 ? loop.depths : depths))
        }
        print(tokens.map(String.init).joined(separator: " "))
    }
}
