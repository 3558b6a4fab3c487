import Foundation

/// The embedding of an ExecuTorch bundle, which the host looks up: rows of the table that layout.json says where to find.
struct EmbeddingRows {
    private enum Kind: String { case float32, int4, int8 }

    private let width: Int
    private let kind: Kind
    private let groups: Int  // of a row that have a scale each
    private let half: Bool  // scales are bfloat16
    private let factor: Float
    private let values: Data
    private let scales: Data

    /// Maps the tables; `LoopProblem` where they are not what `layout`, that of `folder`, says.
    init(_ folder: URL, _ layout: Part) throws {
        let sizes = try layout.part("sizes")
        let table = try layout.part("embedding")
        width = try sizes.size("width")
        factor = Float(try sizes.optional("embedding_scale") ?? 1.0)
        let named: String = try table.known("kind")
        guard let kind = Kind(rawValue: named) else { throw LoopProblem("\(table.name) is of kind \(named)") }
        self.kind = kind
        groups = try table.optional("groups") ?? 0
        let plain = kind == .float32
        let divided = plain || groups > 0 && width % groups == 0 && (kind == .int8 || width % 2 == 0)
        guard divided else {
            throw LoopProblem("\(table.name) has rows of \(width) numbers in \(groups) groups; copy the bundle again")
        }
        half = try table.optional("scale_type") ?? "bfloat16" == "bfloat16"
        let rows = try sizes.size("vocab_size")
        let file = folder.appendingPathComponent(try table.known("file"))
        guard let bytes = try? Data(contentsOf: file, options: .alwaysMapped) else {
            throw LoopProblem("\(file.path) cannot be read; copy the bundle again")
        }
        let row = [.float32: 4 * width, .int8: width, .int4: width / 2][kind] ?? 0
        values = try Self.part(of: bytes, file, try table.known("values"), rows, row)
        let start: Int = try table.optional("scales") ?? 0
        scales = plain ? Data() : try Self.part(of: bytes, file, start, rows, groups * (half ? 2 : 4))
        var found = Checksum()
        found.ends(of: values)
        if !plain { found.ends(of: scales) }
        guard try table.known("check") == Int(found.value) else {
            throw LoopProblem("\(file.path): the embedding is not where layout.json has it; copy the bundle again")
        }
    }

    private static func part(of whole: Data, _ file: URL, _ start: Int, _ rows: Int, _ size: Int) throws -> Data {
        let (bytes, large) = rows.multipliedReportingOverflow(by: size)
        guard !large, bytes > 0, start >= 0, start <= whole.count - bytes else {
            throw LoopProblem("\(file.path): the file of the embedding ends too early; copy the bundle again")
        }
        return whole[start..<start + bytes]
    }

    /// The embedding of token `id`, written to `out` [width].
    func row(_ id: Int, _ out: UnsafeMutableBufferPointer<Float>) {
        values.withUnsafeBytes { values in
            scales.withUnsafeBytes { scales in
                for i in 0..<width {
                    let at = id * width + i
                    guard kind != .float32 else {
                        let bits = UInt32(littleEndian: values.loadUnaligned(fromByteOffset: 4 * at, as: UInt32.self))
                        out[i] = Float(bitPattern: bits) * factor
                        continue
                    }
                    let group = id * groups + i / (width / groups)
                    let code = kind == .int4 ? Int(values[at / 2] >> (i % 2 * 4) & 15) - 8 : Int(Int8(bitPattern: values[at]))
                    out[i] = Float(code) * scale(scales, group) * factor
                }
            }
        }
    }

    private func scale(_ scales: UnsafeRawBufferPointer, _ group: Int) -> Float {
        if half {
            let bits = UInt16(littleEndian: scales.loadUnaligned(fromByteOffset: 2 * group, as: UInt16.self))
            return Float(bitPattern: UInt32(bits) << 16)
        }
        return Float(bitPattern: UInt32(littleEndian: scales.loadUnaligned(fromByteOffset: 4 * group, as: UInt32.self)))
    }
}

/// CRC-32, as zlib has it, of the ends of tables.
private struct Checksum {
    private static let checked = 4096  // bytes at each end of a table
    private(set) var value: UInt32 = 0

    mutating func ends(of table: Data) {
        add(table.prefix(Self.checked))
        add(table.suffix(Self.checked))
    }

    private mutating func add(_ bytes: Data) {
        var sum = ~value
        for byte in bytes {
            sum ^= UInt32(byte)
            for _ in 0..<8 { sum = sum >> 1 ^ (sum & 1 == 1 ? 0xEDB8_8320 : 0) }
        }
        value = ~sum
    }
}
