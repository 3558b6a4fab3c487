import Foundation

// A stand-in: what the loop uses of ExecuTorch's Swift module, with its names and types, over the program itself in another
// process: the command of EDGELOOP_METHODS, tests/pte_methods.py, runs each method with ExecuTorch's runtime.

public enum DataType: Int8, Sendable {
    case float = 6
}

public enum ModuleLoadMode: Int, Sendable {
    case file, mmap
}

public final class AnyTensor {
    public let shape: [Int]
    public let dataType: DataType
    private let memory: UnsafeMutableRawPointer
    private let own: [Float]?

    public init(bytesNoCopy pointer: UnsafeMutableRawPointer, shape: [Int], dataType: DataType) {
        (memory, self.shape, self.dataType, own) = (pointer, shape, dataType, nil)
    }

    init(_ numbers: [Float], _ shape: [Int]) {
        let room = UnsafeMutableBufferPointer<Float>.allocate(capacity: numbers.count)
        _ = room.initialize(from: numbers)
        (memory, self.shape, dataType, own) = (UnsafeMutableRawPointer(room.baseAddress!), shape, .float, numbers)
    }

    deinit {
        if own != nil { memory.deallocate() }
    }

    public var count: Int { shape.reduce(1, *) }

    public func bytes(_ handler: (UnsafeRawPointer, Int, DataType) -> Void) { handler(memory, count, dataType) }

    var numbers: [Float] {
        Array(UnsafeBufferPointer(start: memory.assumingMemoryBound(to: Float.self), count: count))
    }
}

public final class Value {
    public let anyTensor: AnyTensor?

    public init(_ tensor: AnyTensor) { anyTensor = tensor }
}

public protocol ValueConvertible {
    func asValue() -> Value
}

extension AnyTensor: ValueConvertible {
    public func asValue() -> Value { Value(self) }
}

public final class Module {
    private let child: Child

    public init(filePath: String, dataFilePaths: [String], loadMode: ModuleLoadMode) {
        child = Child("EDGELOOP_METHODS", [filePath] + dataFilePaths)
    }

    public func methodNames() throws -> Set<String> {
        child.write("")
        child.flush()
        return Set((0..<child.number()).map { _ in child.text() })
    }

    public func execute(_ method: String, _ inputs: [any ValueConvertible]) throws -> [Value] {
        child.write(method)
        child.write(inputs.count)
        for tensor in inputs.compactMap({ $0.asValue().anyTensor }) {
            child.write(tensor.shape.count)
            tensor.shape.forEach(child.write)
            child.write(tensor.numbers)
        }
        child.flush()
        return (0..<child.number()).map { _ in
            let shape = (0..<child.number()).map { _ in child.number() }
            return Value(AnyTensor(child.numbers(shape.reduce(1, *)), shape))
        }
    }
}
