"""Programs in the words of an engine: one function for each op."""
