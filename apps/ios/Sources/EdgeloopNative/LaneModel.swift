import CEdgeloop
import Edgeloop
import Foundation

/// A model.lanes file, mapped, with its threads and its tokenizer. What computes takes turns.
public final class LaneModel: @unchecked Sendable {
    let model: OpaquePointer
    let text: OpaquePointer?
    public let depths: Int
    public let contextLength: Int
    /// The exit rules that were calibrated.
    public let exits: [String]

    /// `threads` 0: as many as there are cores; on phones often better the number of fast ones.
    public init(_ file: URL, threads: Int = 0) throws {
        guard el_abi() == EL_ABI else {
            throw LaneError(code: EL_USAGE, line: "libedgeloop has interface \(el_abi()), wanted \(EL_ABI)")
        }
        var options = el_open_options()
        options.struct_bytes = UInt32(MemoryLayout<el_open_options>.size)
        options.threads = UInt32(max(threads, 0))
        var opened: OpaquePointer?
        try check { el_open(file.path, &options, &opened, $0) }
        guard let opened else { throw LaneError(code: EL_FILE, line: "no model") }
        do {
            var info = el_info()
            info.struct_bytes = UInt32(MemoryLayout<el_info>.size)
            try check { el_model_info(opened, &info, $0) }
            var about = el_about()
            about.struct_bytes = UInt32(MemoryLayout<el_about>.size)
            try check { el_model_about(opened, &about, $0) }
            var words: OpaquePointer?
            let code = el_text_open(opened, &words, nil)
            guard code == Int32(EL_OK.rawValue) || code == Int32(EL_USAGE.rawValue) else {
                throw LaneError(code: EL_FORMAT, line: "the file's tokenizer is damaged; export it again")
            }
            model = opened
            text = words
            depths = Int(info.depths)
            contextLength = Int(info.context_length)
            exits = (0..<Int(about.exits_count)).compactMap { about.exits?[$0].map { String(cString: $0) } }
        } catch {
            el_close(opened)
            throw error
        }
    }

    deinit {
        el_text_close(text)
        el_close(model)
    }
}

extension LaneModel: TextCodec {
    public func encode(_ text: String, addSpecial: Bool) throws -> [Int64] {
        let utf8 = text.utf8CString
        return try utf8.withUnsafeBufferPointer { bytes in
            try whole(Int64(0)) { into, room, count in
                try check {
                    el_encode(self.text, bytes.baseAddress, bytes.count - 1, addSpecial ? 1 : 0, into, room, count, $0)
                }
            }
        }
    }

    public func render(_ messages: [Message]) throws -> String {
        let texts = messages.flatMap { [$0.role.rawValue, $0.content] }
        let found = try withCStrings(texts) { pointers in
            let given = stride(from: 0, to: pointers.count, by: 2).map {
                el_message(role: pointers[$0], content: pointers[$0 + 1])
            }
            return try whole(CChar(0)) { into, room, count in
                let flags = UInt32(EL_RENDER_ANSWER.rawValue)
                try check { el_render(model, given, UInt32(given.count), flags, into, room, count, $0) }
            }
        }
        return String(decoding: found.map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }

    public func writer(prompt: [Int64], stops: [String]) throws -> any TextWriter {
        try LaneWriter(self, prompt: prompt, stops: stops)
    }
}

/// The tokens of an answer as whole characters, for hosts that are not the lane engine.
final class LaneWriter: TextWriter {
    private let model: LaneModel  // the writer's text is the model's
    private let writer: OpaquePointer?

    init(_ model: LaneModel, prompt: [Int64], stops: [String]) throws {
        var made: OpaquePointer?
        try withCStrings(stops) { pointers in
            try check {
                el_writer_new(model.text, prompt, prompt.count, pointers, UInt32(pointers.count), &made, $0)
            }
        }
        self.model = model
        writer = made
    }

    deinit { el_writer_free(writer) }

    func push(_ token: Int64) throws -> (text: String, stopped: Bool) {
        var utf8: UnsafePointer<CChar>?
        var bytes = 0
        var stopped: UInt32 = 0
        try check { el_writer_push(writer, token, &utf8, &bytes, &stopped, $0) }
        return (string(utf8, bytes), stopped != 0)
    }

    func end() throws -> String {
        var utf8: UnsafePointer<CChar>?
        var bytes = 0
        try check { el_writer_end(writer, &utf8, &bytes, $0) }
        return string(utf8, bytes)
    }
}

/// `bytes` of UTF-8, which have no zero byte at their end.
func string(_ utf8: UnsafePointer<CChar>?, _ bytes: Int) -> String {
    String(decoding: UnsafeRawBufferPointer(start: utf8, count: utf8 == nil ? 0 : bytes), as: UTF8.self)
}
