import CEdgeloop
import Edgeloop
import Foundation

/// The tokenizer and the turns of a bundle, for hosts of every engine: of its text.lanes, or of a model.lanes that is open.
/// Several threads may use it at once.
public final class TextFile: TextCodec, @unchecked Sendable {
    let text: OpaquePointer
    private let model: OpenModel?  // which is closed after its text

    /// A bundle's `text.lanes`; no model is opened here.
    public init(_ file: URL) throws {
        try checkInterface()
        var opened: OpaquePointer?
        try check { el_text_read(file.path, &opened, $0) }
        guard let opened else { throw LaneError(code: EL_FILE, line: "no text") }
        text = opened
        model = nil
    }

    /// nil where the file of `model` has no tokenizer.
    init?(of model: OpenModel) throws {
        var opened: OpaquePointer?
        do {
            try check { el_text_open(model.pointer, &opened, $0) }
        } catch let error as LaneError where error.code == EL_USAGE {
            return nil
        }
        guard let opened else { return nil }
        text = opened
        self.model = model
    }

    deinit { el_text_close(text) }

    /// The tokens that end a text.
    public func ends() throws -> [Int64] {
        try whole(Int64(0)) { into, room, count in
            try check { el_text_ends(text, into, room, count, $0) }
        }
    }

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
                try check { el_text_render(text, given, UInt32(given.count), flags, into, room, count, $0) }
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
    private let text: TextFile  // which outlives the writer
    private let writer: OpaquePointer?

    init(_ text: TextFile, prompt: [Int64], stops: [String]) throws {
        var made: OpaquePointer?
        try withCStrings(stops) { pointers in
            try check {
                el_writer_new(text.text, prompt, prompt.count, pointers, UInt32(pointers.count), &made, $0)
            }
        }
        self.text = text
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
