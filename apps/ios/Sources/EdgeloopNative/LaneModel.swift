import CEdgeloop
import Edgeloop
import Foundation

/// A model.lanes file, mapped, with its threads and its tokenizer. What computes takes turns.
public final class LaneModel: Sendable {
    public let depths: Int
    public let contextLength: Int
    /// The exit rules that were calibrated.
    public let exits: [String]
    private let opened: OpenModel
    private let words: TextFile?

    /// `threads` 0: as many as there are cores; on phones often better the number of fast ones.
    public init(_ file: URL, threads: Int = 0) throws {
        let found = try OpenModel(file, threads)
        var info = el_info()
        info.struct_bytes = UInt32(MemoryLayout<el_info>.size)
        try check { el_model_info(found.pointer, &info, $0) }
        var about = el_about()
        about.struct_bytes = UInt32(MemoryLayout<el_about>.size)
        try check { el_model_about(found.pointer, &about, $0) }
        opened = found
        words = try TextFile(of: found)
        depths = Int(info.depths)
        contextLength = Int(info.context_length)
        exits = (0..<Int(about.exits_count)).compactMap { about.exits?[$0].map { String(cString: $0) } }
    }

    var model: OpaquePointer { opened.pointer }
    var text: OpaquePointer? { words?.text }
}

extension LaneModel: TextCodec {
    public func encode(_ text: String, addSpecial: Bool) throws -> [Int64] {
        try codec().encode(text, addSpecial: addSpecial)
    }

    public func render(_ messages: [Message]) throws -> String { try codec().render(messages) }

    public func writer(prompt: [Int64], stops: [String]) throws -> any TextWriter {
        try codec().writer(prompt: prompt, stops: stops)
    }

    private func codec() throws -> TextFile {
        guard let words else {
            throw LaneError(code: EL_USAGE, line: "the model's file has no tokenizer; export it again with one")
        }
        return words
    }
}

/// A model of the library, which is closed when nobody has it any more.
final class OpenModel: @unchecked Sendable {
    let pointer: OpaquePointer

    init(_ file: URL, _ threads: Int) throws {
        try checkInterface()
        var options = el_open_options()
        options.struct_bytes = UInt32(MemoryLayout<el_open_options>.size)
        options.threads = UInt32(max(threads, 0))
        var opened: OpaquePointer?
        try check { el_open(file.path, &options, &opened, $0) }
        guard let opened else { throw LaneError(code: EL_FILE, line: "no model") }
        pointer = opened
    }

    deinit { el_close(pointer) }
}
