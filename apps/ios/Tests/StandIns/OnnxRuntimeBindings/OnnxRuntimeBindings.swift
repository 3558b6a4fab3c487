import Foundation

// A stand-in: what the loop uses of ONNX Runtime's Objective-C classes, as Swift sees them, over the graph itself in another
// process: the command of EDGELOOP_GRAPHS, tests/onnx_graphs.py, runs it with ONNX Runtime. A run writes its outputs to the
// memory of their values, as ONNX Runtime does.

public enum ORTLoggingLevel: Int, Sendable {
    case warning = 2
}

public enum ORTTensorElementDataType: Int32, Sendable {
    case float = 1
    case int32 = 3
    case int64 = 5

    /// numpy's name.
    var name: String {
        switch self {
        case .float: "float32"
        case .int32: "int32"
        case .int64: "int64"
        }
    }
}

public final class ORTEnv {
    public init(loggingLevel: ORTLoggingLevel) throws {}
}

public final class ORTSessionOptions {
    public init() throws {}

    public func setIntraOpNumThreads(_ intraOpNumThreads: Int32) throws {}
}

public final class ORTRunOptions {}

public final class ORTValue {
    let type: ORTTensorElementDataType
    let shape: [Int]
    private let data: NSMutableData

    public init(tensorData: NSMutableData, elementType: ORTTensorElementDataType, shape: [NSNumber]) throws {
        (data, type, self.shape) = (tensorData, elementType, shape.map(\.intValue))
    }

    public func tensorData() throws -> NSMutableData { data }
}

public final class ORTSession {
    private let child: Child
    private var inputs: [String] = []
    private var outputs: [String] = []

    public init(env: ORTEnv, modelPath path: String, sessionOptions: ORTSessionOptions?) throws {
        child = Child("EDGELOOP_GRAPHS", [path])
        inputs = names()
        outputs = names()
    }

    private func names() -> [String] {
        (0..<child.number()).map { _ in
            let name = child.text()
            for _ in 0..<child.number() { _ = child.number() }  // sizes, which this API does not tell
            return name
        }
    }

    public func inputNames() throws -> [String] { inputs }

    public func outputNames() throws -> [String] { outputs }

    public func run(withInputs given: [String: ORTValue], outputs wanted: [String: ORTValue], runOptions: ORTRunOptions?) throws {
        guard Set(inputs) == Set(given.keys) else { throw Refused(line: "inputs \(given.keys.sorted()), wanted \(inputs)") }
        for name in inputs {
            let value = given[name]!
            let data = Data(referencing: try value.tensorData())
            child.write(value.type.name)
            child.write(value.shape.count)
            value.shape.forEach(child.write)
            child.write(bytes: data)
        }
        child.flush()
        for name in outputs {
            let shape = (0..<child.number()).map { _ in child.number() }
            let data = child.read(child.number())
            guard let value = wanted[name] else { throw Refused(line: "no memory for \(name)") }
            guard value.shape == shape else { throw Refused(line: "\(name) is \(shape), its memory \(value.shape)") }
            let memory = try value.tensorData()
            memory.replaceBytes(in: NSRange(location: 0, length: data.count), withBytes: Array(data))
        }
    }
}

struct Refused: Error {
    let line: String
}
