"""What JNI adds to a token: .venv/bin/python tests/jni_overhead.py (seconds, on a computer that does nothing else).

The demo model writes on a desktop's JVM. The engine says how long each token took; what the answer took beyond that is
JNI's, the listener's and its objects'. The round in which least was added counts.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import jvm

from edgeloop.export import export_bundle
from edgeloop.runtime.engines.native.build import LIBRARY


def main() -> int:
    """Measure it; exit status 1 where there is no JDK."""
    if reason := jvm.missing():
        sys.stderr.write(f"jni_overhead: {reason}\n")
        return 1
    with tempfile.TemporaryDirectory(prefix="edgeloop-jni-") as name:
        folder = Path(name)
        checkpoint = jvm.ROOT / "apps" / "demo" / "checkpoint"
        export_bundle(checkpoint, folder / "bundle", targets=["native"], quant="int4")
        library, path = jvm.jni_library(LIBRARY, folder), jvm.classes(folder)
        model = str(folder / "bundle" / "native" / "model.lanes")
        command = [
            "java",
            f"-Dedgeloop.library={library}",
            "-cp",
            path,
            "edgeloop.Exercise",
            "overhead",
            model,
        ]
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    rounds = [tuple(map(int, line.split())) for line in lines]
    total, inside = min(rounds, key=lambda each: each[0] - each[1])
    added = total - inside
    sys.stdout.write(
        f"JNI adds {added / 1e3:.1f} µs to a token of {inside / 1e3:.0f} µs: {added / total:.1%}\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
