"""The Swift of apps/ios as its tests compile it: modules and programs in a folder, with the stand-ins they need."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import swift_compiler

from edgeloop.runtime.engines.native.build import SOURCES

IOS = Path(__file__).resolve().parents[1] / "apps" / "ios"
HOSTS, CHECKS, STAND_INS = IOS / "Hosts", IOS / "Tests" / "Checks", IOS / "Tests" / "StandIns"
LIBRARIES = {
    "ConversationCheck": ("Edgeloop", "EdgeloopNative", "CoreML", "edgeloop"),
    "DepthCheck": ("Edgeloop", "CoreML"),
    "ChatCheck": ("Edgeloop", "EdgeloopNative", "CoreML", "edgeloop"),
    "EdgeloopChat": ("Edgeloop", "EdgeloopNative", "CoreML", "edgeloop", "SwiftUI"),
    "OnnxCheck": ("OnnxRuntimeBindings",),
    "PteCheck": ("ExecuTorch",),
    "TellCheck": ("Edgeloop", "EdgeloopNative", "CoreML", "edgeloop"),
}
"""What a program is linked with."""


def swift(folder: Path) -> list[Path]:
    return list(folder.glob("*.swift"))


@dataclass
class Built:
    """Modules and programs in a folder, each compiled when it is first asked for, without a warning."""

    folder: Path
    library: Path

    def __post_init__(self) -> None:
        self.programs: dict[str, list[str]] = {}
        self.modules: set[str] = set()

    def module(self, name: str) -> str:
        """The word that links to it."""
        if name not in self.modules:
            self.modules.add(name)
            if name == "edgeloop":
                shutil.copy(self.library, self.folder)
                header = SOURCES / "edgeloop.h"
                description = f'module CEdgeloop {{\n  header "{header}"\n  export *\n}}\n'
                (self.folder / "module.modulemap").write_text(description, encoding="utf-8")
            elif (STAND_INS / name).is_dir():
                swift_compiler.module(
                    name, [STAND_INS / "Child.swift", *swift(STAND_INS / name)], self.folder
                )
            else:
                needs = {"Edgeloop": ("CoreML",), "EdgeloopNative": ("Edgeloop", "edgeloop")}[name]
                link = [self.module(each) for each in needs]
                swift_compiler.module(name, swift(IOS / "Sources" / name), self.folder, link)
        return f"-l{name}"

    def program(self, name: str) -> list[str]:
        """The command that runs it."""
        if name not in self.programs:
            link = [self.module(each) for each in LIBRARIES[name]]
            self.programs[name] = swift_compiler.program(name, self.sources(name), self.folder, link)
        return self.programs[name]

    def sources(self, name: str) -> list[Path]:
        chat = IOS / "Sources" / "EdgeloopChat"
        loop = [HOSTS / "GreedyLoop.swift", HOSTS / "DepthProgram.swift", CHECKS / "LoopCheck.swift"]
        return {
            "ConversationCheck": [CHECKS / "ConversationCheck.swift"],
            "DepthCheck": [CHECKS / "DepthCheck.swift"],
            "ChatCheck": [CHECKS / "ChatCheck.swift", chat / "ChatState.swift"],
            "EdgeloopChat": swift(chat),
            "OnnxCheck": [*loop, HOSTS / "OnnxLoop.swift", CHECKS / "OnnxOpened.swift"],
            "PteCheck": [
                *loop, HOSTS / "PteLoop.swift", HOSTS / "EmbeddingRows.swift", CHECKS / "PteOpened.swift",
            ],
        }[name]  # fmt: skip

    def ran(self, name: str, *words: object, given: str = "", **answering: Path) -> list[str]:
        """The lines that a program writes; ``answering``: the scripts that answer for what stands behind a stand-in."""
        environment = {
            f"EDGELOOP_{kind.upper()}": f"{sys.executable}\n{script}" for kind, script in answering.items()
        }
        done = subprocess.run(
            [*self.program(name), *map(str, words)],
            input=given,
            capture_output=True,
            text=True,
            env={**os.environ, **environment},
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.splitlines()
