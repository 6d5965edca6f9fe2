"""Imports go down only: a module imports its own package and lower floors."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "tfllm"

FLOORS = [
    ["errors", "version"],
    ["config", "keras_internals", "machine"],
    ["layers", "tokenizers"],
    ["models", "data"],
    ["tasks"],
    ["checkpoints"],
    ["generation", "lora"],
    ["runtimes"],
    ["evaluation"],
    ["training"],
    ["export", "saving"],
    ["model"],
    ["pipelines", "serving"],
    ["cli"],
]
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}

# These run on every Keras backend, so they may not know TensorFlow.
KERAS_ONLY = ("layers", "models")

FILES = [path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.stem in FLOOR]


def imported(path: Path):
    """(module, line) of every import in a file, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            if node.module == "tfllm":
                yield from ((f"tfllm.{alias.name}", node.lineno) for alias in node.names)
            else:
                yield node.module, node.lineno
        elif isinstance(node, ast.ImportFrom) and node.level:
            yield "a relative import", node.lineno


def offences(path: Path):
    own = path.relative_to(PACKAGE).with_suffix("").parts[0]
    for module, line in imported(path):
        where = f"{path.relative_to(PACKAGE.parent)}:{line} imports {module}"
        parts = module.split(".")
        if module == "a relative import":
            yield f"{where}: write the whole name"
        elif parts[0] == "tfllm" and len(parts) > 1 and parts[1] != own:
            if parts[1] in FLOOR and FLOOR[parts[1]] >= FLOOR[own]:
                yield f"{where}: floor {FLOOR[own]} may not import floor {FLOOR[parts[1]]}"
        elif own in KERAS_ONLY and parts[0].startswith("tensorflow"):
            yield f"{where}: {own}/ imports keras only"


def module_of(path: Path) -> str:
    name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    return name.removesuffix(".__init__")


def circles(imports: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import one another, found by Tarjan's algorithm (1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in imports[name]:
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            group = []
            while not group or group[-1] != name:
                group.append(stack.pop())
            if len(group) > 1:
                groups.append(sorted(group))

    for name in imports:
        if name not in index:
            visit(name)
    return groups


def test_no_two_files_import_one_another():
    """Imports inside functions and for types included."""
    paths = {module_of(path): path for path in PACKAGE.rglob("*.py")}
    imports = {}
    for name, path in paths.items():
        found = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                whole = [f"{node.module}.{alias.name}" for alias in node.names]
                found |= {module if module in paths else node.module for module in whole}
            elif isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
        imports[name] = found & set(paths) - {name}
    assert circles(imports) == []


def test_a_circle_is_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    assert circles({"a": {"b"}, "b": set()}) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path):
    assert list(offences(path)) == []


def test_every_package_has_a_floor():
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert packages <= set(FLOOR)


def test_an_upward_import_is_found(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    (tmp_path / "layers").mkdir()
    bad = tmp_path / "layers" / "bad.py"
    bad.write_text("import tensorflow as tf\nfrom tfllm.cli import main\n")
    assert len(list(offences(bad))) == 2
