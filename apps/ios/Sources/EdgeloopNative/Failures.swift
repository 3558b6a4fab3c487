import CEdgeloop

/// What libedgeloop refused or could not do: its code, and its one line.
public struct LaneError: Error, CustomStringConvertible {
    public let code: el_code
    public let line: String
    public var description: String { line }
}

/// Throws where the library is of another version than the headers that this was compiled with.
func checkInterface() throws {
    guard el_abi() == EL_ABI else {
        throw LaneError(code: EL_USAGE, line: "libedgeloop has interface \(el_abi()), wanted \(EL_ABI)")
    }
}

/// Calls a function of the library with room for its line; throws what it answers.
func check(_ call: (UnsafeMutablePointer<CChar>?) -> Int32) throws {
    var line = [CChar](repeating: 0, count: Int(EL_ERROR_SIZE))
    let code = line.withUnsafeMutableBufferPointer { call($0.baseAddress) }
    guard code != Int32(EL_OK.rawValue) else { return }
    let text = line.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }
    throw LaneError(code: el_code(rawValue: el_code.RawValue(code)), line: String(decoding: text, as: UTF8.self))
}

/// Calls `body` with the C strings of `texts`, in their order.
func withCStrings<Result>(_ texts: [String], _ body: ([UnsafePointer<CChar>?]) throws -> Result) rethrows -> Result {
    var all: [CChar] = []
    var starts: [Int] = []
    for text in texts {
        starts.append(all.count)
        all += text.utf8CString
    }
    return try all.withUnsafeBufferPointer { buffer in
        try body(starts.map { buffer.baseAddress! + $0 })
    }
}

/// All that a function like snprintf has: it is asked how much, and then for it.
func whole<Element>(_ zero: Element, _ call: (UnsafeMutablePointer<Element>?, Int, UnsafeMutablePointer<Int>) throws -> Void)
    throws -> [Element]
{
    var count = 0
    try call(nil, 0, &count)
    var found = [Element](repeating: zero, count: count)
    let room = count
    try found.withUnsafeMutableBufferPointer { try call($0.baseAddress, room, &count) }
    return found
}
