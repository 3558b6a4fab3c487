import Foundation

// A stand-in: what the package uses of Core ML, with its names and types, over the .mlpackage itself in another process: the
// command of EDGELOOP_FUNCTIONS, tests/coreml_functions.py, runs each function with edgeloop's interpreter. Nothing here is
// Sendable, so that who compiles with it shares nothing between threads that Core ML might not let them share.

public enum MLComputeUnits: Int, Sendable {
    case cpuOnly, cpuAndGPU, all, cpuAndNeuralEngine
}

public final class MLModelConfiguration {
    public var functionName: String?
    public var computeUnits = MLComputeUnits.all

    public init() {}
}

public struct MLModelMetadataKey: Hashable, Sendable {
    public static let creatorDefinedKey = MLModelMetadataKey()
}

public final class MLModelDescription {
    public let metadata: [MLModelMetadataKey: Any]

    init(_ creator: [String: String]) { metadata = [.creatorDefinedKey: creator] }
}

/// The interpreter of a package, which all of its functions share.
final class Package: @unchecked Sendable {
    private static let lock = NSLock()
    nonisolated(unsafe) private static var opened: [URL: Package] = [:]
    let creator: [String: String]
    let functions: Set<String>
    private let child: Child

    private init(_ url: URL) {
        child = Child("EDGELOOP_FUNCTIONS", [url.path])
        creator = Dictionary(uniqueKeysWithValues: (0..<child.number()).map { [child] _ in
            let key = child.text()
            return (key, String(decoding: child.read(child.number()), as: UTF8.self))
        })
        functions = Set((0..<child.number()).map { [child] _ in child.text() })
    }

    static func at(_ url: URL) -> Package {
        lock.withLock {
            if let found = opened[url] { return found }
            let fresh = Package(url)
            opened[url] = fresh
            return fresh
        }
    }

    func newState() -> Int {
        Self.lock.withLock {
            child.write("")
            child.flush()
            return child.number()
        }
    }

    func run(_ function: String, _ state: Int, _ features: any MLFeatureProvider) throws -> [String: MLMultiArray] {
        try Self.lock.withLock {
            child.write(function)
            child.write(state)
            let given = features.featureNames.sorted()
            child.write(given.count)
            for name in given {
                guard let array = features.featureValue(for: name)?.multiArrayValue else { fatalError("no \(name)") }
                child.write(name)
                child.write(array.kind.name)
                child.write(array.shape.count)
                array.shape.forEach { child.write($0.intValue) }
                child.write(bytes: array.data)
            }
            child.flush()
            let refused = child.text()
            guard refused.isEmpty else { throw Refused(line: refused) }
            return Dictionary(uniqueKeysWithValues: (0..<child.number()).map { _ in
                let name = child.text()
                let kind: MLMultiArray.Kind = child.text() == "float16" ? .float16 : .int32
                let shape = (0..<child.number()).map { _ in child.number() }
                return (name, MLMultiArray(kind, shape, child.read(child.number())))
            })
        }
    }
}

struct Refused: Error {
    let line: String
}

public final class MLState {
    let number: Int

    init(_ number: Int) { self.number = number }
}

public final class MLModel {
    public let modelDescription: MLModelDescription
    private let package: Package
    private let function: String

    private init(_ package: Package, _ function: String) {
        (self.package, self.function) = (package, function)
        modelDescription = MLModelDescription(package.creator)
    }

    public static func compileModel(at modelURL: URL) async throws -> URL { modelURL }

    public static func load(contentsOf url: URL, configuration: MLModelConfiguration) async throws -> MLModel {
        let package = Package.at(url)
        guard let function = configuration.functionName, package.functions.contains(function) else {
            throw Refused(line: "no function \(configuration.functionName ?? "")")
        }
        return MLModel(package, function)
    }

    public func makeState() -> MLState { MLState(package.newState()) }

    public func prediction(from input: any MLFeatureProvider, using state: MLState) async throws -> any MLFeatureProvider {
        try MLDictionaryFeatureProvider(dictionary: try package.run(function, state.number, input))
    }
}

public protocol MLFeatureProvider {
    var featureNames: Set<String> { get }
    func featureValue(for featureName: String) -> MLFeatureValue?
}

public final class MLFeatureValue {
    public let multiArrayValue: MLMultiArray?

    init(_ array: MLMultiArray?) { multiArrayValue = array }
}

public final class MLDictionaryFeatureProvider: MLFeatureProvider {
    private let features: [String: Any]

    public init(dictionary: [String: Any]) throws { features = dictionary }

    public var featureNames: Set<String> { Set(features.keys) }

    public func featureValue(for featureName: String) -> MLFeatureValue? {
        features[featureName].map { MLFeatureValue($0 as? MLMultiArray) }
    }
}

public protocol MLShapedArrayScalar {
    static var kind: MLMultiArray.Kind { get }
}

extension Float16: MLShapedArrayScalar {
    public static var kind: MLMultiArray.Kind { .float16 }
}

extension Int32: MLShapedArrayScalar {
    public static var kind: MLMultiArray.Kind { .int32 }
}

public struct MLShapedArray<Scalar: MLShapedArrayScalar> {
    public let scalars: [Scalar]
    public let shape: [Int]

    public init(scalars: [Scalar], shape: [Int]) {
        precondition(scalars.count == shape.reduce(1, *))
        (self.scalars, self.shape) = (scalars, shape)
    }

    public init(_ array: MLMultiArray) {
        precondition(array.kind == Scalar.kind, "an array of another type")
        shape = array.shape.map(\.intValue)
        scalars = array.data.withUnsafeBytes { Array($0.bindMemory(to: Scalar.self)) }
    }
}

public final class MLMultiArray {
    public enum Kind: Sendable {
        case float16, int32

        /// numpy's name.
        var name: String { self == .float16 ? "float16" : "int32" }
    }

    public let shape: [NSNumber]
    let kind: Kind
    let data: Data

    public convenience init<Scalar: MLShapedArrayScalar>(_ array: MLShapedArray<Scalar>) {
        self.init(Scalar.kind, array.shape, array.scalars.withUnsafeBytes { Data($0) })
    }

    init(_ kind: Kind, _ shape: [Int], _ data: Data) {
        (self.kind, self.shape, self.data) = (kind, shape.map { NSNumber(value: $0) }, data)
    }
}
