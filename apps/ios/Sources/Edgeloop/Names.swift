/// Names inside the package that `edgeloop export --target coreml` writes. A test of edgeloop holds them against one.
enum FunctionName {
    static let embed = "embed"
    static let prefill = "prefill"
    static let decodeAll = "decode_all"
    static let head = "head"
    static func decode(_ depth: Int) -> String { "decode_d\(depth)" }
    static func fill(leftAfter depth: Int) -> String { "kvfill_d\(depth)" }
}

enum FeatureName {
    static let ids = "ids"
    static let position = "position"
    static let hidden = "hidden"
    static let next = "next"
    static let logits = "logits"
}

enum MetadataKey {
    static let spec = "edgeloop.spec"
    static let package = "edgeloop.package"
    static let tokenizer = "edgeloop.tokenizer"
    static let exits = "edgeloop.exits"
}
