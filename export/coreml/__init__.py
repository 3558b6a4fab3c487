"""The Core ML package: its functions as MIL programs, and the check of what was saved."""
