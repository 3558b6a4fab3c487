@_exported import Foundation
@_exported import Observation

// A stand-in: what the chat's screen uses of SwiftUI, with its names and, as far as the screen goes, its types. Nothing is drawn:
// it says whether the screen fits the chat's state and Swift's rules about actors, not what SwiftUI makes of it.

@MainActor
public protocol View {
    associatedtype Body: View
    @ViewBuilder var body: Body { get }
}

extension Never: View {
    public var body: Never { fatalError("nothing is drawn") }
}

/// A view without parts that are views.
public protocol Leaf: View where Body == Never {}

extension Leaf {
    public var body: Never { fatalError("nothing is drawn") }
}

public struct Parts: Leaf {}

public struct Either<One: View, Other: View>: Leaf {}

extension Optional: View, Leaf where Wrapped: View {}

@resultBuilder
@MainActor
public enum ViewBuilder {
    public static func buildExpression<V: View>(_ view: V) -> V { view }
    public static func buildBlock<V: View>(_ view: V) -> V { view }
    public static func buildBlock<each V: View>(_ views: repeat each V) -> Parts { Parts() }
    public static func buildIf<V: View>(_ view: V?) -> V? { view }
    public static func buildEither<One: View, Other: View>(first: One) -> Either<One, Other> { Either() }
    public static func buildEither<One: View, Other: View>(second: Other) -> Either<One, Other> { Either() }
}

public struct Text: Leaf {
    public init(_ text: String) {}
    public func foregroundStyle(_ colour: Color) -> Text { self }
    public static func + (one: Text, other: Text) -> Text { one }
}

public enum HorizontalAlignment { case leading }
public enum UnitPoint { case bottom }
public enum Font { case footnote }

public struct Color: Sendable {
    public static let red = Color(hue: 0, saturation: 1, brightness: 1)
    public static let clear = red
    public static let accentColor = red
    public init(hue: Double, saturation: Double, brightness: Double) {}
    public func opacity(_ share: Double) -> Color { self }
}

public protocol Shape {}

public struct RoundedRectangle: Shape {
    public init(cornerRadius: Double) {}
}

public struct VStack: Leaf {
    public init<V: View>(spacing: Double? = nil, @ViewBuilder content: () -> V) {}
}

public struct HStack: Leaf {
    public init<V: View>(@ViewBuilder content: () -> V) {}
}

public struct LazyVStack: Leaf {
    public init<V: View>(alignment: HorizontalAlignment, spacing: Double? = nil, @ViewBuilder content: () -> V) {}
}

public struct ScrollView: Leaf {
    public init<V: View>(@ViewBuilder content: () -> V) {}
}

public struct ForEach: Leaf {
    public init<Each: Identifiable, V: View>(_ all: [Each], @ViewBuilder content: @escaping (Each) -> V) {}
}

public struct Slider: Leaf {
    public init(value: Binding<Double>, in bounds: ClosedRange<Double>, onEditingChanged: @escaping @MainActor (Bool) -> Void) {}
}

public struct TextField: Leaf {
    public init(_ title: String, text: Binding<String>) {}
}

public struct Button: Leaf {
    public init(_ title: String, action: @escaping @MainActor () -> Void) {}
}

extension View {
    public func padding(_ points: Double? = nil) -> some View { self }
    public func foregroundStyle(_ colour: Color) -> some View { self }
    public func font(_ font: Font) -> some View { self }
    public func monospaced() -> some View { self }
    public func background(_ colour: Color) -> some View { self }
    public func clipShape(_ shape: some Shape) -> some View { self }
    public func defaultScrollAnchor(_ anchor: UnitPoint) -> some View { self }
    public func disabled(_ disabled: Bool) -> some View { self }
    public func onSubmit(_ action: @escaping @MainActor () -> Void) -> some View { self }
    public func task(_ action: @escaping @MainActor @Sendable () async -> Void) -> some View { self }
}

@MainActor
@propertyWrapper
public struct State<Value> {
    public init(wrappedValue: Value) {}
    public var wrappedValue: Value {
        get { fatalError("nothing is drawn") }
        nonmutating set {}
    }
    public var projectedValue: Binding<Value> { Binding() }
}

extension State where Value: ExpressibleByNilLiteral {
    public init() { self.init(wrappedValue: nil) }
}

@MainActor
public struct Binding<Value> {}

@MainActor
@propertyWrapper
public struct Bindable<Value: AnyObject & Observable> {
    public var wrappedValue: Value
    public init(wrappedValue: Value) { self.wrappedValue = wrappedValue }
}

@MainActor
public protocol Scene {}

public struct WindowGroup: Scene {
    public init<V: View>(@ViewBuilder content: () -> V) {}
}

@MainActor
public protocol App {
    associatedtype Content: Scene
    init()
    var body: Content { get }
}

extension App {
    public static func main() {}
}

/// Of Apple's Foundation, which that on Linux lacks.
extension URL {
    public static var documentsDirectory: URL { FileManager.default.homeDirectoryForCurrentUser }
}
