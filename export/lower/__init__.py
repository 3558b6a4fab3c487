"""Programs in the operators of an engine: one function for each op."""
