import Foundation

func opened(_ bundle: URL, _ capacity: Int) throws -> GreedyLoop { try PteLoop(bundle: bundle, capacity: capacity) }
