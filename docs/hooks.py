"""What mkdocs shows beside the pages in this folder, under the paths that all of it has in the checkout.

So that links are the same on the site as in the checkout: the README and its neighbours, whatever they and the pages
link to, and a page made of the docstrings of the public names.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s#]+)(?:#[^)\s]*)?\)")
PUBLIC = ("runtime", "export")
RETURNED = (
    "runtime.text.tokenizer.Tokenizer",
    "runtime.timing.GenerationStats",
    "runtime.serve.handle.Completion",
    "runtime.decode.windows.Perplexity",
    "runtime.decode.evaluation.Evaluation",
    "runtime.bundle.manifest.Manifest",
    "runtime.bundle.manifest.Quantization",
    "runtime.bundle.manifest.Target",
    "runtime.bundle.manifest.Parity",
    "runtime.bundle.manifest.Exit",
    "runtime.bundle.manifest.Text",
    "runtime.bundle.manifest.File",
)
"""Types that callers are given by public names, and do not make."""
SIZES = "Capital letters in brackets are sizes: B texts, S tokens, D width, R depths, V vocabulary."
PACKAGES = ROOT / "build" / "api" / "edgeloop"
"""The checkout is the package, with more beside it than mkdocstrings should read: links to what it needs."""


def on_startup(**kwargs: object) -> None:
    """Make the folder that ``mkdocs.yml`` tells mkdocstrings to look for the package in."""
    PACKAGES.mkdir(parents=True, exist_ok=True)
    for name in ("__init__.py", "runtime", "export", "quant"):
        link = PACKAGES / name
        if not link.is_symlink():
            link.symlink_to(ROOT / name)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Return the theme's files, and ours under their paths in the checkout."""
    theme = [file for file in files if file.src_dir != config.docs_dir]
    ours = [
        File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path))
        for path in _linked()
    ]
    return Files([*theme, *ours, File.generated(config, "docs/api.md", content=_reference())])


def on_page_markdown(markdown: str, **kwargs: object) -> str:
    """Return ``markdown`` with shapes behind something in brackets told from links, which are all inline here."""
    return markdown.replace("] [", "] \\[")


def _linked() -> Iterator[Path]:
    """The pages here and at the root, and all that can be reached from them."""
    waiting = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
    found = set(waiting)
    while waiting:
        path = waiting.pop(0)
        yield path
        for link in LINK.findall(path.read_text(encoding="utf-8")) if path.suffix == ".md" else ():
            target = (path.parent / link).resolve()
            if "://" not in link and target.is_file() and target not in found:
                found.add(target)
                waiting.append(target)


def _reference() -> str:
    """A page that lets mkdocstrings write about every public name, what they return, and the errors."""
    lines = [
        "# Python reference",
        "",
        "Capital letters are sizes: B sequences, S tokens, D width, R depths, V vocabulary.",
        "",
    ]
    for package in PUBLIC:
        lines += [f"## edgeloop.{package}", ""]
        lines += [line for name in _public(package) for line in (f"::: edgeloop.{package}.{name}", "")]
    lines += ["## What they return", ""]
    lines += [line for name in RETURNED for line in (f"::: edgeloop.{name}", "")]
    return "\n".join([*lines, "## Errors", "", "::: edgeloop.runtime.errors", ""])


def _public(package: str) -> list[str]:
    tree = ast.parse((ROOT / package / "__init__.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            names: list[str] = ast.literal_eval(node.value)
            return names
    raise ValueError(f"{package} has no __all__")
