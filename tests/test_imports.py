"""The arrows between the parts of the package point down only; what is parsed here is every import of every file."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import mpelu

PACKAGE = Path(mpelu.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

LAYERS = [
    ["errors"],
    ["address"],
    ["ops"],
    ["functional"],
    ["nn"],
    ["optim", "moments", "graph"],
    ["init", "models", "data", "report"],
    ["conversion", "diagnostics"],
    ["train"],
    ["recipes", "bench", "deploy"],
    ["studies"],
    ["cli"],
    ["__main__"],
]
"""From low to high. A part imports from lower layers and from itself, not from its neighbours."""

RANK = {part: rank for rank, layer in enumerate(LAYERS) for part in layer}
ONLY = {"report": {"errors"}, "ops": {"errors"}, "errors": set()}
"""Parts that may import even less than what lies below them."""

FREE_OF_TORCH = ["errors", "address", "report", "cli", "recipes", "studies", "__main__"]


def part_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(file: Path, *, top_level: bool = False) -> Iterator[tuple[int, str]]:
    """Yield the line and the full name of what a file imports, late imports too unless ``top_level``."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: write imports with the full name"
            assert node.module is not None
            # `from mpelu import data` names a part, `from mpelu.data import load` a member of one
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def own_imports(file: Path) -> Iterator[tuple[int, str]]:
    """Yield the line and the part of the package that a file imports; ``mpelu`` itself is the part ''."""
    for line, name in imports(file):
        root, _, rest = name.partition(".")
        if root == "mpelu":
            part = rest.partition(".")[0]
            yield line, part if part in RANK else ""


def taken_from_the_front_door(file: Path) -> set[str]:
    """Return the names that a file reads as ``mpelu.name``."""
    return {
        node.attr
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "mpelu"
    }


def test_every_file_has_a_layer():
    assert {part_of(file) for file in FILES} - {"__init__"} <= set(RANK)
    assert len(FILES) > 20


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_point_down(file):
    part = part_of(file)
    if part == "__init__":
        return  # the front door: it imports late, and by name
    for line, imported in own_imports(file):
        where = f"{file.relative_to(PACKAGE)}:{line}: {part} imports {imported or 'mpelu itself'}"
        if imported == "":
            assert taken_from_the_front_door(file) <= {"__version__", "__file__"}, where
        elif imported != part:
            assert RANK[imported] < RANK[part], where
            assert imported in ONLY.get(part, set(RANK)), where


@pytest.mark.parametrize("part", FREE_OF_TORCH)
def test_parts_that_do_not_import_torch_at_the_top(part):
    files = [file for file in FILES if part_of(file) == part]
    assert files
    for file in files:
        late_imports_allowed = part in ("cli", "studies")
        for line, name in imports(file, top_level=late_imports_allowed):
            assert name.partition(".")[0] != "torch", f"{file.relative_to(PACKAGE)}:{line}"


def test_triton_is_imported_by_one_file_only():
    files = {file.relative_to(PACKAGE) for file in FILES for _, name in imports(file) if name.split(".")[0] == "triton"}
    assert files <= {Path("ops/triton.py")}


@pytest.mark.parametrize(
    "module", ["mpelu", "mpelu.cli", "mpelu.errors", "mpelu.report", "mpelu.studies.demo", "mpelu.train.recipe"]
)
def test_starts_without_torch(module):
    code = f"import sys, {module}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    assert done.stdout.strip() == "False"


def is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def is_all(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]


PACKAGES = [file for file in FILES if file.name == "__init__.py" and file.parent != PACKAGE]


@pytest.mark.parametrize("file", PACKAGES, ids=lambda file: file.parent.name)
def test_packages_only_re_export(file):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    imported = {
        alias.asname or alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    names = [ast.literal_eval(node.value) for node in tree.body if is_all(node)]
    for node in tree.body:
        assert is_docstring(node) or is_all(node) or isinstance(node, ast.ImportFrom), f"line {node.lineno}"
    assert set(names[0] if names else []) == imported


def test_private_names_stay_in_their_file():
    for file in FILES:
        for line, name in imports(file):
            if name.startswith("mpelu.") and name != "mpelu.ops._cpu":  # the compiled part of ops/cpu.py
                last = name.rpartition(".")[2]
                assert not last.startswith("_") or last.startswith("__"), f"{file.relative_to(PACKAGE)}:{line}: {name}"


def test_every_public_name_is_found():
    for name in mpelu.__all__:
        assert getattr(mpelu, name) is not None
        assert name in dir(mpelu)
    for name in ("functional", "nn", "init", "models", "data", "optim", "graph"):
        assert getattr(mpelu, name).__name__ == f"mpelu.{name}"
    with pytest.raises(AttributeError, match="module 'mpelu' has no attribute 'mpelU'"):
        _ = mpelu.mpelU


def test_type_checkers_see_the_same_names():
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    (checked,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        alias.name: node.module for node in checked.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert set(seen) == set(mpelu.__all__)
    for name, module in seen.items():
        assert getattr(sys.modules[module], name) is getattr(mpelu, name)
