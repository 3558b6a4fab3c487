"""pyproject.toml says what the tree says."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterable
from datetime import date
from itertools import chain
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

from edgeloop.runtime import version
from edgeloop.runtime.bundle.manifest import FORMAT as BUNDLE_FORMAT
from edgeloop.runtime.context.saved import FORMAT as SESSION_FORMAT
from edgeloop.runtime.engines.native.format import VERSION as LANES_VERSION

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
NOT_SHIPPED = {"tests", "build", "dist", "docs"}
REQUIREMENTS: dict[str, list[str]] = {
    "dependencies": PROJECT["project"]["dependencies"],
    **PROJECT["project"]["optional-dependencies"],
}
WHERE = {  # what a file may import: the extras of every place that it is in
    "": ("dependencies",),
    "runtime/engines/onnx/": ("onnx",),
    "runtime/engines/executorch/": ("executorch",),
    "runtime/engines/coreml/": ("coreml",),
    "runtime/text/template_worker.py": ("chat",),
    "runtime/bundle/signature.py": ("sign",),
    "export/": ("export",),
    "export/calibration/": ("calibrate",),
    "export/drift/": ("calibrate",),
    "export/page.py": ("calibrate",),
    "export/lower/mil_": ("coreml",),
    "export/lower/xnnpack_": ("executorch",),
    "export/targets/coreml/": ("coreml",),
    "export/targets/executorch/": ("executorch",),
    "quant/": ("export",),
    "quant/palette.py": ("coreml",),
    "apps/": ("cli", "export"),
    "apps/against.py": ("calibrate",),
    "apps/measure/panels.py": ("calibrate",),
    "apps/measure/roofline.py": ("calibrate",),
    "apps/measure/ops_": ("executorch", "onnx"),
    "apps/lm_eval.py": ("lm-eval",),
    "apps/bench_profile.py": ("executorch",),
    "apps/predicting/sweep.py": ("ray",),
    "apps/predicting/sweep_plot.py": ("calibrate",),
    "apps/bench_pte.py": ("executorch",),
    "tests/": tuple(REQUIREMENTS),
}
PACKAGES = {"google": "protobuf", "sklearn": "scikit-learn", "yaml": "pyyaml"}  # of modules with another name
TOOLS = {  # started, or imported by name when asked for
    "mkdocs",
    "mkdocs-material",
    "mkdocstrings-python",
    "mypy",
    "onnxruntime-genai",
    "pymdown-extensions",
    "pytest-xdist",
    "ruff",
    "tqdm",
    "tree-sitter",
    "tree-sitter-kotlin",
    "tree-sitter-swift",
}


def imports() -> dict[str, set[str]]:
    """The packages that each file imports, but for the standard library's and our own."""
    # build: of the lane engine, which its C++ tests run beside the package
    own = {"edgeloop", "build", *(path.stem for path in (ROOT / "tests").glob("*.py"))}
    found: dict[str, set[str]] = {}
    for path in (
        p for f in ("apps", "export", "quant", "runtime", "tests") for p in (ROOT / f).rglob("*.py")
    ):
        if path.name == "packaging.py":  # setuptools' commands, which a build has
            continue
        modules = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                modules.add(node.module.partition(".")[0])
        others = modules - sys.stdlib_module_names - own
        found[path.relative_to(ROOT).as_posix()] = {PACKAGES.get(m, m.replace("_", "-")) for m in others}
    return found


IMPORTS = imports()


def test_the_package_list_is_the_tree() -> None:
    folders = [p.parent.relative_to(ROOT) for p in ROOT.rglob("__init__.py")]
    shipped = [
        f for f in folders if not f.parts or not (f.parts[0] in NOT_SHIPPED or f.parts[0].startswith("."))
    ]
    assert PROJECT["tool"]["setuptools"]["packages"] == sorted(
        ".".join(("edgeloop", *f.parts)) for f in shipped
    )


def test_every_module_is_in_a_package() -> None:
    packages = {ROOT.joinpath(*name.split(".")[1:]) for name in PROJECT["tool"]["setuptools"]["packages"]}
    modules = [p for name in ("apps", "export", "quant", "runtime") for p in (ROOT / name).rglob("*.py")]
    assert {module.parent for module in modules} - packages == set()


def test_only_the_package_itself_is_at_the_root() -> None:
    assert [p.name for p in ROOT.glob("*.py")] == ["__init__.py"]  # any other would land in the wheel


def test_package_data_exists() -> None:
    for package, patterns in PROJECT["tool"]["setuptools"]["package-data"].items():
        folder = ROOT.joinpath(*package.split(".")[1:])
        for pattern in patterns:
            assert list(folder.glob(pattern)), f"{package}: nothing matches {pattern}"


def test_the_version_is_in_one_place() -> None:
    assert PROJECT["project"]["dynamic"] == ["version"]
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "edgeloop.runtime.version.VERSION"}


def test_the_changelog_begins_with_this_version() -> None:
    """A section each version, newest first; the first one alone may be without a date."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    titles = re.findall(r"(?m)^## (.*)$", text)
    sections = [re.fullmatch(r"(\d+\.\d+\.\d+) - (unreleased|\d{4}-\d\d-\d\d)", t) for t in titles[:-1]]
    assert titles[-1] == "What a version promises"
    versions = [found[1] for found in sections if found]
    assert len(versions) == len(sections), titles
    assert versions[0] == version.VERSION
    assert [Version(v) for v in versions] == sorted({Version(v) for v in versions}, reverse=True)
    dates = [date.fromisoformat(found[2]) for found in sections if found and found[2] != "unreleased"]
    assert len(dates) in (len(sections), len(sections) - 1)
    assert sections[0] is not None
    assert len(dates) == len(sections) or sections[0][2] == "unreleased"
    assert dates == sorted(dates, reverse=True)


def test_every_requirement_has_bounds() -> None:
    for requirement in chain.from_iterable(REQUIREMENTS.values()):
        assert re.fullmatch(r"[\w.-]+(==[\d.]+|>=[\d.]+,<[\d.]+)", requirement), requirement


def test_the_lock_has_what_make_install_installs() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    extras = re.search(r"(?m)^EXTRAS := (.*)$", makefile)
    assert extras is not None
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    locked = {
        found["name"]: found["version"]
        for found in re.finditer(
            r"(?m)^(?P<name>[\w.-]+)==(?P<version>\S+)( ;.*)? \\\n +--hash=sha256:", text
        )
    }
    assert len(locked) == len(re.findall(r"(?m)^\w", text))  # each has a hash
    for extra in ("dependencies", *extras[1].split(",")):
        for wanted in map(Requirement, REQUIREMENTS[extra]):
            # Its builds for processors and for cards differ in hash and in needs: pip takes the index's.
            if wanted.name == "torch":
                assert "torch" not in locked
            else:
                assert wanted.specifier.contains(locked[wanted.name]), f"{wanted}: run make lock"
    assert not [name for name in locked if name.startswith(("nvidia-", "cuda-", "triton"))]
    assert "://" not in text
    assert "--index" not in text


def test_every_import_is_declared_where_it_is_needed() -> None:
    found = {
        f"{file}: {name}"
        for file, names in IMPORTS.items()
        for name in names
        if name
        not in {of for place, extras in WHERE.items() if file.startswith(place) for of in declared(extras)}
    }
    assert found == set()


def test_every_requirement_is_imported() -> None:
    imported = set(chain.from_iterable(IMPORTS.values())) | TOOLS
    assert declared(REQUIREMENTS) - imported == set()


def declared(extras: Iterable[str]) -> set[str]:
    """Names of the packages of ``extras``."""
    return {Requirement(requirement).name for extra in extras for requirement in REQUIREMENTS[extra]}


def test_the_documents_name_the_formats_that_are_read() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"the format that its manifest names ({BUNDLE_FORMAT})" in text
    assert f"by their own format numbers ({SESSION_FORMAT} and {LANES_VERSION})" in text
    page = (ROOT / "docs" / "bundle.md").read_text(encoding="utf-8")
    assert f"| a bundle of format {BUNDLE_FORMAT} |" in page
    assert f"`model.lanes` of another format number than the engine's ({LANES_VERSION} now)" in page


def test_no_module_has_the_name_of_a_standard_one() -> None:
    # Inside a package this is legal, but it misleads readers, and scripts that are run from that folder.
    names = {p.stem for f in ("apps", "export", "quant", "runtime") for p in (ROOT / f).rglob("*.py")}
    assert names & set(sys.stdlib_module_names) == set()


def test_texts_are_read_and_written_in_an_encoding_of_ours() -> None:
    """Not in the one of the user's locale. What a system writes in ASCII (/proc, /sys) may be read in any."""
    found = []
    for path in (p for f in ("apps", "export", "quant", "runtime") for p in (ROOT / f).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and _depends_on_the_locale(node):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)[:80]}")
    assert found == []


def _depends_on_the_locale(call: ast.Call) -> bool:
    """Is it ``read_text``, ``write_text``, or ``open`` in text mode, without an encoding?"""
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    if any(k.arg == "encoding" for k in call.keywords) or "'/proc/" in ast.unparse(call):
        return False
    if name == "read_text":
        return not call.args
    if name == "write_text":
        return len(call.args) < 2
    modes = [a.value for a in call.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
    return name == "open" and any(set(mode) <= set("rwax+t") for mode in modes)


def test_files_that_are_spoken_of_exist() -> None:
    """By their whole path or the end of it, in what people read: documents and docstrings."""
    folders = [ROOT / name for name in ("apps", "docs", "export", "quant", "runtime", "tests")]
    tree = [*ROOT.glob("*.md"), *(path for folder in folders for path in folder.rglob("*.*"))]
    known = "\n".join(f"/{path.relative_to(ROOT).as_posix()}" for path in tree) + "\n"
    skipped_kv = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in tree
        if path.suffix in (".md", ".py")
        for name in re.findall(r"`([a-z_0-9/]+\.(?:py|cpp|md))`", path.read_text(encoding="utf-8"))
        if name != "utils.py" and f"/{name}\n" not in known
    }
    assert not skipped_kv
