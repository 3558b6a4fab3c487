import Edgeloop
import EdgeloopNative
import SwiftUI

/// Opens the bundle in the app's documents: `native/model.lanes`, and on Core ML where there is `coreml/model.mlpackage`.
@main
struct EdgeloopChatApp: App {
    @State private var state: ChatState?
    @State private var problem = ""

    var body: some Scene {
        WindowGroup {
            if let state {
                ChatScreen(state: state)
            } else {
                Text(problem.isEmpty ? "Opening the model …" : problem).padding().task { await open() }
            }
        }
    }

    private func open() async {
        do {
            let bundle = URL.documentsDirectory.appending(path: "bundle")
            let lanes = try LaneModel(bundle.appending(path: "native/model.lanes"))
            let package = bundle.appending(path: "coreml/model.mlpackage")
            if FileManager.default.fileExists(atPath: package.path) {
                let model = try await RecursiveModel(package: package)
                state = ChatState(try CoreMLConversation(model, codec: lanes))
            } else {
                state = ChatState(try LaneConversation(lanes))
            }
        } catch {
            problem = String(describing: error)
        }
    }
}
