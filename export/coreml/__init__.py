"""The Core ML package: its functions as MIL programs, and an interpreter that checks what was saved."""
