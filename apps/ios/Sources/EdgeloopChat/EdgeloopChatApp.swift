import Edgeloop
import EdgeloopNative
import SwiftUI

/// Opens the bundle in the app's documents: on Core ML `coreml/model.mlpackage` with `text.lanes` where there is one, else
/// `native/model.lanes`.
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
            let package = bundle.appending(path: "coreml/model.mlpackage")
            if FileManager.default.fileExists(atPath: package.path) {
                let model = try await RecursiveModel(package: package)
                let text = try TextFile(bundle.appending(path: "text.lanes"))
                state = ChatState(try CoreMLConversation(model, codec: text))
            } else {
                let lanes = try LaneModel(bundle.appending(path: "native/model.lanes"))
                state = ChatState(try LaneConversation(lanes))
            }
        } catch {
            problem = String(describing: error)
        }
    }
}
