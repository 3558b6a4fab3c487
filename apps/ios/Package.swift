// swift-tools-version: 6.0
import PackageDescription

let package = Package(
    name: "Edgeloop",
    platforms: [.iOS(.v18), .macOS(.v15)],
    products: [.library(name: "Edgeloop", targets: ["Edgeloop"])],
    targets: [.target(name: "Edgeloop")]
)
