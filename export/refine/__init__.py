"""Scales, codes, norms and deltas of a quantized model, trained so that it says what the float model says."""
