"""The import rules of the house, beyond what import-linter sees: how modules are named, who is imported, what works without what.

That serving stands without the training stack has tests of its own in test_serving_isolation.py.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("trainer", "serving", "protos", "configs", "tools")
# Names that say nothing of what is inside, so that everything ends up there.
EMPTY_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}


def _modules() -> dict[str, Path]:
    found = {}
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = _modules()


def _imported(name: str, path: Path) -> Iterator[str]:
    """The modules that the file imports, `from package import module` counted as both."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            yield source
            yield from (f"{source}.{alias.name}" for alias in node.names)


def _is_entry(path: Path) -> bool:
    return any(
        isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"
        for node in ast.parse(path.read_text(encoding="utf-8")).body
    )


def test_every_room_is_there() -> None:
    assert {name.partition(".")[0] for name in MODULES} == set(ROOMS)


def test_no_module_has_a_name_that_says_nothing() -> None:
    assert [name for name in MODULES if EMPTY_NAMES & set(name.split("."))] == []


def test_entry_modules_are_imported_by_nobody() -> None:
    entries = {name for name, path in MODULES.items() if _is_entry(path)}
    assert "trainer.main" in entries  # the search finds what it looks for
    importers = {
        f"{name} imports {target}"
        for name, path in MODULES.items()
        for target in entries & set(_imported(name, path))
        if target != name
    }
    assert importers == set()


def test_the_trainer_takes_from_serving_only_the_rooms_free_of_grpc() -> None:
    rooms = ("bundle", "preprocess", "tokenise", "runtime", "repository", "timing", "command")
    allowed = [f"serving.{room}" for room in rooms]
    taken = {
        (name, target)
        for name, path in MODULES.items()
        if name.startswith("trainer")
        for target in _imported(name, path)
        if target.startswith("serving.")
        and not f"{target}.".startswith(tuple(f"{room}." for room in allowed))
    }
    assert taken == set()


def test_import_linter_finds_every_contract_kept() -> None:
    command = "from importlinter.cli import lint_imports_command as lint; lint()"
    ended = subprocess.run(
        [sys.executable, "-c", command, "--no-cache", "--no-logo"], cwd=ROOT, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


TRAINING = ("jax", "jaxlib", "flax", "optax", "grain", "orbax", "tensorstore")
SERVING = ("grpc", "grpc_health", "onnxruntime", "openvino")

# What is blocked, and the modules that have to import without it.
WITHOUT = {
    "recipes": (
        (*TRAINING, *SERVING, "numpy"),
        [name for name in MODULES if name.split(".")[0] == "configs"],
    ),
    "configuration": ((*TRAINING, *SERVING), ["trainer.config", "trainer.description"]),
    "launcher": (
        (*TRAINING, *SERVING, "numpy"),
        ["tools.launch", "tools.vitforge", *(name for name in MODULES if name.startswith("tools.launchers"))],
    ),
    # The exporter asks onnxruntime's own quantizer; sessions are opened by serving.runtime alone.
    "trainer": (
        ("grpc", "grpc_health", "openvino"),
        [name for name in MODULES if name.split(".")[0] == "trainer"],
    ),
    "protos": (
        (*TRAINING, "numpy", "onnxruntime"),
        [name for name in MODULES if name.split(".")[0] == "protos"],
    ),
    "Grain workers": (
        ("jax", "jaxlib", "flax", "optax", "orbax", "tensorstore"),
        [
            name
            for name in MODULES
            if name.startswith("trainer.data.") and name != "trainer.data.global_batch"
        ],
    ),
}

_IMPORT_BLOCKED = """
import importlib, sys
blocked, modules = set(sys.argv[1].split(",")), sys.argv[2].split(",")

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ImportError(f"{name} is not there")

sys.meta_path.insert(0, Block())
for module in modules:
    importlib.import_module(module)
    print("imported", module)
"""


@pytest.mark.parametrize("room", WITHOUT)
def test_a_room_imports_without_what_it_must_not_need(room: str) -> None:
    blocked, modules = WITHOUT[room]
    # An entry module's body is free to name what its installation has, but nothing is run by importing it.
    ended = subprocess.run(
        [sys.executable, "-c", _IMPORT_BLOCKED, ",".join(blocked), ",".join(modules)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split()[1::2] == modules


def test_the_block_does_block() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", _IMPORT_BLOCKED, "json", "json.decoder"], capture_output=True, text=True
    )
    assert "json is not there" in ended.stderr
