// swift-tools-version: 6.0
import PackageDescription

// CEdgeloop is libedgeloop with its header files: `apps/ios/xcframework.sh` makes it, on a Mac.
let package = Package(
    name: "Edgeloop",
    platforms: [.iOS(.v18), .macOS(.v15)],
    products: [
        .library(name: "Edgeloop", targets: ["Edgeloop"]),
        .library(name: "EdgeloopNative", targets: ["EdgeloopNative"]),
        .executable(name: "EdgeloopChat", targets: ["EdgeloopChat"]),
    ],
    targets: [
        .target(name: "Edgeloop"),
        .binaryTarget(name: "CEdgeloop", path: "CEdgeloop.xcframework"),
        .target(name: "EdgeloopNative", dependencies: ["Edgeloop", "CEdgeloop"]),
        .executableTarget(name: "EdgeloopChat", dependencies: ["Edgeloop", "EdgeloopNative"]),
    ]
)
