"""The committed generated code: made from the .proto files beside it, in the right pool, and taken by the installed protobuf.

The compiler is no dependency of the house, so one check reads the .proto files by itself and runs everywhere; those that compile
them again run where grpcio-tools is installed.
"""

import importlib
import importlib.util
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2
from google.protobuf.internal import api_implementation

from tests.support.servers import ROOT

PROTOS = sorted((ROOT / "protos").glob("*.proto"))
NAMES = [path.stem for path in PROTOS]
COMPILER = importlib.util.find_spec("grpc_tools") is not None
WITH = "1.76"  # of grpcio-tools; protos/generate.py says why

needs_compiler = pytest.mark.skipif(
    not COMPILER, reason="grpcio-tools is not installed; see protos/README.md"
)


def _module(name: str) -> Any:
    return importlib.import_module(f"protos.{name}_pb2")


# What a .proto file says, as far as we use the language: nested blocks, fields, enum values, calls.
_TOKEN = re.compile(r'"[^"]*"|[\w.]+|[{}<>,;=()]|-')
_LABELS = ("repeated", "optional")


def _declared(text: str) -> set[tuple[str, ...]]:
    tokens = _TOKEN.findall(re.sub(r"//.*", "", text))
    found: set[tuple[str, ...]] = set()
    scope: list[tuple[str, str]] = []
    statement: list[str] = []
    for token in tokens:
        if token == "{":
            if statement[0] == "rpc":
                found |= _statement(scope[-1][1], statement)
            scope.append((statement[0], statement[1]))
            statement = []
        elif token == "}":
            scope.pop()
        elif token == ";":
            inside = ".".join(name for kind, name in scope if kind != "oneof")
            found |= _statement(inside, statement)
            statement = []
        else:
            statement.append(token)
    assert scope == []
    return found


def _statement(inside: str, statement: list[str]) -> set[tuple[str, ...]]:
    if statement[0] == "rpc":
        return {(inside, *(word for word in statement[1:] if word not in "()" and word != "returns"))}
    if not inside or statement[0] in ("reserved", "option"):  # outside: syntax, package, import
        return set()
    *before, _, number = statement
    *kind, name = [word for word in before if word not in _LABELS]
    return {(inside, "repeated" if "repeated" in before else "", "".join(kind), name, number)}


def _generated(descriptor: Any) -> set[tuple[str, ...]]:
    file = descriptor_pb2.FileDescriptorProto()
    descriptor.CopyToProto(file)
    found: set[tuple[str, ...]] = set()
    for message in file.message_type:
        found |= _of_message(message, message.name)
    for enum in file.enum_type:
        found |= {(enum.name, "", "", value.name, str(value.number)) for value in enum.value}
    for service in file.service:
        found |= {
            (service.name, call.name, _last(call.input_type), _last(call.output_type))
            for call in service.method
        }
    return found


def _of_message(message: Any, scope: str) -> set[tuple[str, ...]]:
    nested = {inner.name: inner for inner in message.nested_type}
    found: set[tuple[str, ...]] = set()
    for field in message.field:
        entry = nested.get(_last(field.type_name))
        if entry is not None and entry.options.map_entry:
            key, value = entry.field
            found.add((scope, "", f"map<{_type(key)},{_type(value)}>", field.name, str(field.number)))
        else:
            repeated = "repeated" if field.label == field.LABEL_REPEATED else ""
            found.add((scope, repeated, _type(field), field.name, str(field.number)))
    for enum in message.enum_type:
        found |= {(f"{scope}.{enum.name}", "", "", value.name, str(value.number)) for value in enum.value}
    for inner in nested.values():
        if not inner.options.map_entry:
            found |= _of_message(inner, f"{scope}.{inner.name}")
    return found


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _type(field: Any) -> str:
    if field.type_name:
        package = ".google.protobuf."
        return (
            field.type_name.removeprefix(".")
            if field.type_name.startswith(package)
            else _last(field.type_name)
        )
    return str(descriptor_pb2.FieldDescriptorProto.Type.Name(field.type)).removeprefix("TYPE_").lower()


@pytest.mark.parametrize("name", NAMES)
def test_the_committed_code_has_every_field_and_call_of_its_proto_file_and_no_other(name: str) -> None:
    declared = _declared((ROOT / "protos" / f"{name}.proto").read_text())
    assert len(declared) > 10  # the reader finds what it looks for
    assert _generated(_module(name).DESCRIPTOR) == declared


def test_a_field_that_changed_after_the_code_was_generated_is_seen() -> None:
    text = (ROOT / "protos" / "vision.proto").read_text()
    generated = _generated(_module("vision").DESCRIPTOR)
    assert _declared(text.replace("top_k = 4", "top_k = 6")) != generated
    assert _declared(text.replace("uint32 top_k", "int32 top_k")) != generated
    assert _declared(text.replace("string id = 5;", "string id = 5; string more = 6;")) != generated


@pytest.mark.parametrize("name", NAMES)
def test_every_proto_file_has_code_types_and_where_it_has_a_service_stubs(name: str) -> None:
    room = ROOT / "protos"
    assert (room / f"{name}_pb2.py").is_file()
    assert (room / f"{name}_pb2.pyi").is_file()
    has_service = "\nservice " in (room / f"{name}.proto").read_text()
    assert (room / f"{name}_pb2_grpc.py").is_file() == has_service


@pytest.mark.parametrize("name", NAMES)
def test_only_the_inference_code_uses_the_pool_of_its_own(name: str) -> None:
    text = (ROOT / "protos" / f"{name}_pb2.py").read_text()
    own = re.search(r"^from protos(\.pool import| import pool)\b", text, re.M) is not None
    default = "from google.protobuf import descriptor_pool as _descriptor_pool" in text
    assert (own, default) == ((True, False) if name == "inference" else (False, True))


@pytest.mark.parametrize("name", NAMES)
def test_the_code_is_of_a_protobuf_6_compiler_and_loads_on_the_installed_runtime(name: str) -> None:
    text = (ROOT / "protos" / f"{name}_pb2.py").read_text()
    made_by = re.search(r"# Protobuf Python Version: (\d+)\.(\d+)\.(\d+)", text)
    assert made_by is not None
    made = tuple(map(int, made_by.groups()))
    installed = tuple(int(part) for part in version("protobuf").split(".")[:3])
    # protobuf's promise: generated code runs on its own major version and the next one, never on an older release.
    assert made[0] == 6
    assert made <= installed < (8,)
    code = f"import warnings; warnings.simplefilter('error'); import protos.{name}_pb2"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_the_stubs_load_on_the_oldest_grpcio_that_the_house_allows() -> None:
    allowed = re.search(r'"grpcio>=([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert allowed is not None
    for path in sorted((ROOT / "protos").glob("*_pb2_grpc.py")):
        wanted = re.search(r"GRPC_GENERATED_VERSION = '(\d+)\.(\d+)", path.read_text())
        assert wanted is not None
        assert wanted.groups() == tuple(allowed[1].split(".")[:2])
        importlib.import_module(f"protos.{path.stem}")
    assert tuple(map(int, grpc.__version__.split(".")[:2])) >= (1, 76)


def test_the_code_also_loads_on_the_pure_python_runtime() -> None:
    code = (
        "from google.protobuf.internal import api_implementation as a; assert a.Type() == 'python', a.Type()\n"
        "from protos import bundle_pb2, inference_pb2, vision_pb2\n"
        "sent = inference_pb2.ModelInferRequest(model_name='m', raw_input_contents=[b'x'])\n"
        "assert inference_pb2.ModelInferRequest.FromString(sent.SerializeToString()) == sent\n"
    )
    assert api_implementation.Type() != "python"  # else this test says nothing new
    environment = {"PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python", "PATH": ""}
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr


@needs_compiler
@pytest.mark.parametrize("name", NAMES)
def test_compiling_again_gives_the_committed_descriptors(name: str, tmp_path: Path) -> None:
    out = tmp_path / "set"
    arguments = ["-I.", f"--descriptor_set_out={out}", f"protos/{name}.proto"]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *arguments], cwd=ROOT, check=True)
    [compiled] = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file
    committed = descriptor_pb2.FileDescriptorProto.FromString(_module(name).DESCRIPTOR.serialized_pb)
    for file in (compiled, committed):
        _without_json_names(file.message_type)  # protoc adds them to a set and leaves them out of code
    assert compiled == committed


def _without_json_names(messages: Any) -> None:
    for message in messages:
        for field in message.field:
            field.ClearField("json_name")
        _without_json_names(message.nested_type)


@needs_compiler
def test_generating_again_gives_the_committed_files_to_the_letter(tmp_path: Path) -> None:
    if not version("grpcio-tools").startswith(f"{WITH}."):
        pytest.skip(f"grpcio-tools is {version('grpcio-tools')}; {WITH} writes the committed code")
    room = tmp_path / "protos"
    room.mkdir()
    for path in [*PROTOS, ROOT / "protos" / "generate.py"]:
        (room / path.name).write_bytes(path.read_bytes())
    ended = subprocess.run(
        [sys.executable, "protos/generate.py"], cwd=tmp_path, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    made = {path.name: path.read_text() for path in room.iterdir() if "_pb2" in path.name}
    committed = {path.name: path.read_text() for path in (ROOT / "protos").iterdir() if "_pb2" in path.name}
    assert sorted(made) == sorted(committed)
    assert [name for name in made if made[name] != committed[name]] == []
