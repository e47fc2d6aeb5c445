"""Serving stands without the training stack, and the client without a runtime: in processes where those cannot be imported."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import bundles, servers

TRAINING = ("flax", "optax", "grain", "orbax", "tensorstore", "jax", "jaxlib", "ml_collections", "trainer")
# A client also does without what only a server needs.
BEYOND_THE_CLIENT = (*TRAINING, "onnxruntime", "onnx", "PIL", "grpc_health")

_IMPORT_ALL = """
import importlib, sys
blocked, modules = set(sys.argv[1].split(",")), sys.argv[2].split(",")

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ImportError(f"{name} is blocked in this process")

sys.meta_path.insert(0, Block())
for module in modules:
    importlib.import_module(module)
print(len(modules))
"""


def modules_of(room: str) -> list[str]:
    files = sorted((servers.ROOT / room).rglob("*.py"))
    names = [".".join(file.relative_to(servers.ROOT).with_suffix("").parts) for file in files]
    return [name.removesuffix(".__init__") for name in names]


def import_without(blocked: tuple[str, ...], modules: list[str]) -> "subprocess.CompletedProcess[str]":
    arguments = [sys.executable, "-c", _IMPORT_ALL, ",".join(blocked), ",".join(modules)]
    return subprocess.run(arguments, cwd=servers.ROOT, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("room", "blocked"), [("serving", TRAINING), ("serving/client", BEYOND_THE_CLIENT), ("protos", TRAINING)]
)
def test_every_module_of_a_room_imports_without_what_it_must_not_need(
    room: str, blocked: tuple[str, ...]
) -> None:
    # The compiler of the protos runs on a developer's machine only.
    modules = [name for name in modules_of(room) if name != "protos.generate"]
    assert len(modules) > 1
    ended = import_without(blocked, modules)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split() == [str(len(modules))]


def test_the_block_does_block() -> None:
    ended = import_without(("onnxruntime",), ["serving.runtime.onnx"])
    assert "onnxruntime is blocked" in ended.stderr


def test_a_server_serves_without_the_training_stack_and_a_client_asks_without_a_runtime(
    tmp_path: Path,
) -> None:
    bundles.write_tiny(tmp_path / "models")
    image = tmp_path / "one.png"
    image.write_bytes(bundles.png())
    with servers.serving(tmp_path / "models", without=(*TRAINING, "onnx")) as server:
        arguments = (f"--server={server.target}", "--model=tiny", str(image))
        ended = servers.run("serving.client", *arguments, without=BEYOND_THE_CLIENT)
        assert ended.code == 0, ended.errors
        assert len(ended.result["results"][0]["labels"]) == 5
        assert server.stop().code == 0
