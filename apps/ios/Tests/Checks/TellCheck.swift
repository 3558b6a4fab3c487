import Foundation

// What tests/apps/test_swift_loops.py runs of the program in docs/in-your-app.md: a bundle, a prompt, and how many depths.

@main
struct TellCheck {
    static func main() throws {
        let words = CommandLine.arguments
        try tell(URL(fileURLWithPath: words[1]), words[2], depths: Int(words[3])!)
    }
}
