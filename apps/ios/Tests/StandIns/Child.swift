import Foundation

/// Another process that answers, by its standard input and output: numbers as Java's DataOutputStream writes them.
final class Child {
    private let process = Process()
    private let input = Pipe()
    private let output = Pipe()
    private var given = Data()  // what is not sent yet

    /// The command of an environment variable, a word a line, with more words behind it.
    init(_ variable: String, _ words: [String]) {
        let command = (ProcessInfo.processInfo.environment[variable] ?? "").split(separator: "\n").map(String.init) + words
        process.executableURL = URL(fileURLWithPath: command[0])
        process.arguments = Array(command.dropFirst())
        process.standardInput = input
        process.standardOutput = output
        do { try process.run() } catch { fatalError("\(command[0]): \(error)") }
    }

    deinit { try? input.fileHandleForWriting.close() }

    func write(_ number: Int) {
        withUnsafeBytes(of: Int32(number).bigEndian) { given.append(contentsOf: $0) }
    }

    func write(_ text: String) {
        let bytes = Array(text.utf8)
        withUnsafeBytes(of: UInt16(bytes.count).bigEndian) { given.append(contentsOf: $0) }
        given.append(contentsOf: bytes)
    }

    func write(_ numbers: [Float]) {
        for number in numbers { write(Int(Int32(bitPattern: number.bitPattern))) }
    }

    func write(bytes: Data) { given.append(bytes) }

    /// Sends what was written.
    func flush() {
        input.fileHandleForWriting.write(given)
        given.removeAll()
    }

    func read(_ count: Int) -> Data {
        var found = Data()
        while found.count < count {
            let part = output.fileHandleForReading.readData(ofLength: count - found.count)
            guard !part.isEmpty else { fatalError("the other process has ended") }
            found.append(part)
        }
        return found
    }

    func number() -> Int {
        read(4).withUnsafeBytes { Int(Int32(bigEndian: $0.loadUnaligned(as: Int32.self))) }
    }

    func text() -> String {
        let size = read(2).withUnsafeBytes { UInt16(bigEndian: $0.loadUnaligned(as: UInt16.self)) }
        return String(decoding: read(Int(size)), as: UTF8.self)
    }

    func numbers(_ count: Int) -> [Float] {
        read(4 * count).withUnsafeBytes { bytes in
            (0..<count).map {
                Float(bitPattern: UInt32(bigEndian: bytes.loadUnaligned(fromByteOffset: 4 * $0, as: UInt32.self)))
            }
        }
    }
}
