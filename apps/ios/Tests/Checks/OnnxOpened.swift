import Foundation

func opened(_ bundle: URL, _ capacity: Int) throws -> GreedyLoop { try OnnxLoop(bundle: bundle, capacity: capacity, threads: 1) }
