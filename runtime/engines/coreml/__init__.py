"""Core ML packages in numpy: an interpreter of what was saved, which checks exports and is an engine of its own."""
