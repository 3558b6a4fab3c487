"""Writing bundles: in a hidden folder beside their place, which they take in one step or never."""
