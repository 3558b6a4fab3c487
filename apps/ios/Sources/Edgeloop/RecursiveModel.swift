import CoreML
import Foundation

public enum EdgeloopError: Error {
    /// The package was not written by edgeloop, or lacks what is named.
    case notAPackage(String)
    /// The text does not fit into the states.
    case contextFull(capacity: Int)
    /// The package has no such exit rule, or not for this host.
    case noRule(String)
    /// Something is being written: stop it, or wait.
    case answering
    /// There is no answer at the end that could be given anew.
    case noAnswer
}

/// What the package's metadata say of it.
struct PackageDescription: Decodable {
    let functions: [String: String]
    let chunk: Int
    let capacity: Int
}

/// What a host must know of the model's architecture.
public struct Specification: Decodable, Sendable {
    public let family: String
    public let contextLength: Int
    public let vocabSize: Int
    public let hiddenSize: Int
    public let eosTokenIds: [Int]
    /// "per-depth", or "shared": depths after the first read its K/V.
    public let kv: String

    enum CodingKeys: String, CodingKey {
        case family, kv
        case contextLength = "context_length"
        case vocabSize = "vocab_size"
        case hiddenSize = "hidden_size"
        case eosTokenIds = "eos_token_ids"
    }
}

/// The functions of one .mlpackage. All of them have the same states, so a state that one makes serves them all.
///
/// Nothing of it changes, and Core ML takes predictions of several threads at once, each with a state of its own.
public final class RecursiveModel: @unchecked Sendable {
    public let specification: Specification
    /// SHA-256 of the tokenizer.json that belongs to the model; nil if it came without one.
    public let tokenizerSHA256: String?
    /// R: how often the block can be applied.
    public let depths: Int
    /// Tokens of a `prefill` call.
    public let chunk: Int
    /// Heads that exit rules read, by name.
    let heads: [String: [Float]]
    private let calibrated: [String: CalibratedRule]
    private let functions: [String: MLModel]

    /// Load every function on the compute unit that it is meant for.
    public init(package url: URL) async throws {
        let compiled = url.pathExtension == "mlmodelc" ? url : try await MLModel.compileModel(at: url)
        // Metadata come with any function; the smallest one is loaded for them.
        let first = try await Self.load(compiled, FunctionName.embed, units: .cpuOnly)
        let creator = first.modelDescription.metadata[.creatorDefinedKey] as? [String: String] ?? [:]
        let description: PackageDescription = try Self.decoded(creator, MetadataKey.package)
        let exits: ExitDescription = try Self.decoded(creator, MetadataKey.exits)
        heads = exits.heads.mapValues(\.numbers)
        calibrated = exits.rules
        specification = try Self.decoded(creator, MetadataKey.spec)
        let tokenizer: [String: String]? = try Self.decoded(creator, MetadataKey.tokenizer)
        tokenizerSHA256 = tokenizer?["sha256"]
        chunk = description.chunk
        depths = (0...).prefix { description.functions[FunctionName.decode($0)] != nil }.count
        var loaded = [FunctionName.embed: first]
        for (name, unit) in description.functions where loaded[name] == nil {
            loaded[name] = try await Self.load(compiled, name, units: Self.units[unit] ?? .all)
        }
        functions = loaded
    }

    /// The exit rules that `edgeloop calibrate` left in the package.
    public var exitNames: [String] { calibrated.keys.sorted() }

    /// K/V of a new sequence, zeroed.
    public func makeState() throws -> MLState { try function(FunctionName.decodeAll).makeState() }

    /// Are there functions that fill in K/V of the depths that a token skipped?
    public var canFill: Bool { functions[FunctionName.fill(leftAfter: 0)] != nil }

    /// May a token leave early? Not where that would leave rows of K/V without their numbers.
    public var canExit: Bool { depths > 1 && (canFill || specification.kv == "shared") }

    /// The rule that `edgeloop calibrate` left in the package. This host fills in skipped K/V (`--skipped-kv propagate`),
    /// so thresholds that were measured with other K/V are refused.
    public func exitRule(_ name: String) throws -> ExitRule {
        guard let rule = calibrated[name], let measure = Measure(rawValue: name) else {
            throw EdgeloopError.noRule("\(name): calibrated are \(calibrated.keys.sorted())")
        }
        guard rule.missing == "propagate" || rule.missing == "shared" else {
            throw EdgeloopError.noRule("\(name): calibrated for --skipped-kv \(rule.missing), wanted propagate")
        }
        return .when(measure, passes: rule.thresholds)
    }

    /// One call. Core ML asks for the features that a function has, so all of them may be passed.
    func call(_ name: String, _ features: [String: MLMultiArray], _ state: MLState) async throws -> MLFeatureProvider {
        let provider = try MLDictionaryFeatureProvider(dictionary: features)
        return try await function(name).prediction(from: provider, using: state)
    }

    private func function(_ name: String) throws -> MLModel {
        guard let model = functions[name] else { throw EdgeloopError.notAPackage("no function \(name)") }
        return model
    }

    private static let units: [String: MLComputeUnits] = [
        "cpuOnly": .cpuOnly, "cpuAndGPU": .cpuAndGPU, "cpuAndNeuralEngine": .cpuAndNeuralEngine,
    ]

    private static func load(_ url: URL, _ function: String, units: MLComputeUnits) async throws -> MLModel {
        let configuration = MLModelConfiguration()
        configuration.functionName = function
        configuration.computeUnits = units
        return try await MLModel.load(contentsOf: url, configuration: configuration)
    }

    private static func decoded<T: Decodable>(_ metadata: [String: String], _ key: String) throws -> T {
        guard let text = metadata[key] else { throw EdgeloopError.notAPackage("no metadata \(key)") }
        return try JSONDecoder().decode(T.self, from: Data(text.utf8))
    }
}
