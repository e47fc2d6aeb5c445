"""Our inference messages and tritonclient's: the same names in one process, and the same bytes on the wire."""

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf import descriptor_pool

from protos import inference_pb2
from tests.support.servers import ROOT

# Fills a request of one module and reads its bytes with the other.
_BOTH = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
from protos import inference_pb2 as ours
from tritonclient.grpc import service_pb2 as theirs
sent = ours.ModelInferRequest(model_name="m", id="7", raw_input_contents=[b"abc"])
sent.parameters["timeout"].int64_param = 5
sent.inputs.add(name="images", datatype="FP32", shape=[-1, 8])
got = theirs.ModelInferRequest.FromString(sent.SerializeToString())
assert got.inputs[0].shape == [-1, 8] and got.parameters["timeout"].int64_param == 5, got
assert ours.ModelInferRequest.FromString(got.SerializeToString(deterministic=True)) == sent
print("both")
"""
ORDERS = (
    ("tritonclient.grpc", "protos.inference_pb2_grpc"),
    ("protos.inference_pb2_grpc", "tritonclient.grpc"),
    ("serving.client", "tritonclient.grpc"),
    ("tritonclient.grpc", "serving.service.server"),
)


@pytest.mark.parametrize("order", ORDERS, ids=" then ".join)
def test_tritonclient_and_ours_live_in_one_process_whichever_comes_first(order: tuple[str, str]) -> None:
    ended = subprocess.run([sys.executable, "-c", _BOTH, *order], cwd=ROOT, capture_output=True, text=True)
    assert ended.stdout == "both\n", ended.stderr


def _nested(messages: Any) -> Iterator[Any]:
    for message in messages:
        yield message
        yield from _nested(message.nested_types)


OURS = {
    message.full_name: message for message in _nested(inference_pb2.DESCRIPTOR.message_types_by_name.values())
}


def _theirs() -> dict[str, Any]:
    from tritonclient.grpc import model_config_pb2, service_pb2

    files = (service_pb2, model_config_pb2)
    found = [message for file in files for message in _nested(file.DESCRIPTOR.message_types_by_name.values())]
    return {message.full_name: message for message in found}


def _is_repeated(field: Any) -> bool:
    # Descriptors of protobuf 7 say it with a property; `label` is gone there and deprecated before.
    return bool(field.is_repeated if hasattr(field, "is_repeated") else field.label == field.LABEL_REPEATED)


def _on_the_wire(field: Any) -> tuple[Any, ...]:
    """All that decides how a field is written and what its reader calls it."""
    kind = field.message_type or field.enum_type
    oneof = field.containing_oneof
    return (
        field.name,
        field.number,
        field.type,
        _is_repeated(field),
        kind.full_name if kind else None,
        oneof.name if oneof else None,
    )


@pytest.mark.parametrize("name", sorted(OURS))
def test_every_field_that_we_define_is_tritons(name: str) -> None:
    theirs = _theirs()
    assert name in theirs
    public = {_on_the_wire(field) for field in theirs[name].fields}
    assert {_on_the_wire(field) for field in OURS[name].fields} - public == set()


def test_the_comparison_of_fields_sees_a_changed_number() -> None:
    theirs = _theirs()["inference.ModelInferRequest"]
    public = {_on_the_wire(field) for field in theirs.fields}
    moved = [(name, number + 1, *rest) for name, number, *rest in sorted(public, key=str)]
    assert not public & set(moved)


def _enums(messages: Any, top: Any) -> dict[str, dict[str, int]]:
    found = [*top, *(enum for message in messages for enum in message.enum_types)]
    return {enum.full_name: {value.name: value.number for value in enum.values} for enum in found}


def test_every_value_of_our_enums_is_tritons() -> None:
    from tritonclient.grpc import model_config_pb2

    ours = _enums(OURS.values(), inference_pb2.DESCRIPTOR.enum_types_by_name.values())
    theirs = _enums(_theirs().values(), model_config_pb2.DESCRIPTOR.enum_types_by_name.values())
    assert len(ours) == 4
    for name, values in ours.items():
        assert values.items() <= theirs[name].items(), name


def test_every_call_that_we_define_is_tritons() -> None:
    from tritonclient.grpc import service_pb2

    def calls(file: Any) -> dict[str, tuple[str, str, bool, bool]]:
        service = file.services_by_name["GRPCInferenceService"]
        return {
            call.name: (
                call.input_type.full_name,
                call.output_type.full_name,
                call.client_streaming,
                call.server_streaming,
            )
            for call in service.methods
        }

    ours = calls(inference_pb2.DESCRIPTOR)
    assert len(ours) == 8
    assert ours.items() <= calls(service_pb2.DESCRIPTOR).items()


def test_our_inference_messages_are_not_in_the_default_pool() -> None:
    program = (
        "from google.protobuf import descriptor_pool\n"
        "from protos import inference_pb2, inference_pb2_grpc\n"
        "try:\n"
        "    descriptor_pool.Default().FindMessageTypeByName('inference.ModelInferRequest')\n"
        "except KeyError:\n"
        "    print('absent')\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert ended.stdout == "absent\n", ended.stderr
    own = inference_pb2.DESCRIPTOR.pool
    assert own is not descriptor_pool.Default()
    assert (
        own.FindMessageTypeByName("inference.ModelInferRequest") is inference_pb2.ModelInferRequest.DESCRIPTOR
    )


def test_vision_and_bundle_are_in_the_default_pool_where_reflection_and_any_look_for_them() -> None:
    from protos import bundle_pb2, vision_pb2

    pool = descriptor_pool.Default()
    for message in (vision_pb2.ClassifyRequest, bundle_pb2.Manifest):
        assert pool.FindMessageTypeByName(message.DESCRIPTOR.full_name) is message.DESCRIPTOR
