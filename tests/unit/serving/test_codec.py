"""The codec: what a request may say of its tensors, and that what is written is read back."""

from typing import Any

import numpy as np
import pytest

from protos import bundle_pb2, inference_pb2
from serving import codec
from serving.errors import InvalidInput

SIGNATURE = [bundle_pb2.TensorSpec(name="images", datatype="FP32", shape=[-1, 2, 1])]
OUTPUTS = [
    bundle_pb2.TensorSpec(name=name, datatype="FP32", shape=[-1, 3]) for name in ("logits", "features")
]
PIXELS = np.arange(6, dtype=np.float32).reshape(3, 2, 1)


def raw_request(array: np.ndarray = PIXELS, name: str = "images") -> inference_pb2.ModelInferRequest:
    return inference_pb2.ModelInferRequest(
        inputs=[codec.encode_input(name, array)], raw_input_contents=[codec.raw_bytes(array)]
    )


def typed_request(datatype: str, shape: list[int], **contents: Any) -> inference_pb2.ModelInferRequest:
    tensor = inference_pb2.ModelInferRequest.InferInputTensor(
        name="x", datatype=datatype, shape=shape, contents=inference_pb2.InferTensorContents(**contents)
    )
    return inference_pb2.ModelInferRequest(inputs=[tensor])


def decode(request: inference_pb2.ModelInferRequest, max_batch_size: int = 8) -> np.ndarray:
    return codec.decode_inputs(request, SIGNATURE, max_batch_size)["images"]


def test_raw_contents_are_read_without_a_copy() -> None:
    decoded = decode(raw_request())
    assert np.array_equal(decoded, PIXELS)
    assert not decoded.flags.owndata


@pytest.mark.parametrize(
    ("datatype", "contents"),
    [
        ("BOOL", {"bool_contents": [True, False]}),
        ("UINT8", {"uint_contents": [0, 255]}),
        ("UINT16", {"uint_contents": [0, 65535]}),
        ("UINT32", {"uint_contents": [0, 2**32 - 1]}),
        ("UINT64", {"uint64_contents": [0, 2**64 - 1]}),
        ("INT8", {"int_contents": [-128, 127]}),
        ("INT16", {"int_contents": [-32768, 32767]}),
        ("INT32", {"int_contents": [-(2**31), 2**31 - 1]}),
        ("INT64", {"int64_contents": [-(2**63), 2**63 - 1]}),
        ("FP32", {"fp32_contents": [0.5, -1.5]}),
        ("FP64", {"fp64_contents": [1e300, -1.0]}),
    ],
)
def test_typed_contents_mean_what_raw_contents_mean(datatype: str, contents: dict[str, list[float]]) -> None:
    signature = [bundle_pb2.TensorSpec(name="x", datatype=datatype, shape=[-1])]
    typed = codec.decode_inputs(typed_request(datatype, [2], **contents), signature, 8)["x"]
    assert typed.tolist() == next(iter(contents.values()))
    raw = codec.decode_inputs(raw_request(typed, "x"), signature, 8)["x"]
    assert raw.dtype == typed.dtype
    assert np.array_equal(raw, typed)


def test_half_precision_travels_raw_only() -> None:
    signature = [bundle_pb2.TensorSpec(name="x", datatype="FP16", shape=[-1])]
    halves = np.array([0.5, 2.0], np.float16)
    assert codec.decode_inputs(raw_request(halves, "x"), signature, 8)["x"].tolist() == [0.5, 2.0]
    with pytest.raises(InvalidInput, match="raw only"):
        codec.decode_inputs(typed_request("FP16", [2], fp32_contents=[0.5, 2.0]), signature, 8)


def test_a_typed_value_that_its_type_cannot_hold_is_refused() -> None:
    signature = [bundle_pb2.TensorSpec(name="x", datatype="UINT8", shape=[-1])]
    with pytest.raises(InvalidInput, match="UINT8 cannot hold"):
        codec.decode_inputs(typed_request("UINT8", [1], uint_contents=[256]), signature, 8)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (PIXELS.astype(np.float64), "datatype FP64, expected FP32"),
        (PIXELS.reshape(3, 1, 2), r"shape \[3,1,2\], expected \[-1,2,1\]"),
        (PIXELS[0], r"shape \[2,1\], expected \[-1,2,1\], where -1 is the batch"),
        (PIXELS[:0], "a batch has at least one row"),
        (np.zeros((9, 2, 1), np.float32), "batch-size must be <= 8"),
    ],
)
def test_a_tensor_that_is_not_what_the_model_takes_is_refused(array: np.ndarray, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        decode(raw_request(array))


def test_a_negative_batch_is_refused() -> None:
    request = raw_request()
    request.inputs[0].shape[0] = -3
    with pytest.raises(InvalidInput, match="at least one row"):
        decode(request)


@pytest.mark.parametrize("size", [0, 23, 25, 48])
def test_bytes_that_do_not_match_the_shape_are_refused(size: int) -> None:
    request = raw_request()
    request.raw_input_contents[0] = bytes(size)
    with pytest.raises(InvalidInput, match=rf"has {size} bytes, but FP32 of shape \[3,2,1\] takes 24"):
        decode(request)


def test_typed_values_that_do_not_match_the_shape_are_refused() -> None:
    request = inference_pb2.ModelInferRequest(inputs=[codec.encode_input("images", PIXELS)])
    with pytest.raises(
        InvalidInput, match=r"0 values in contents.fp32_contents, but shape \[3,2,1\] takes 6"
    ):
        decode(request)


def test_raw_and_typed_contents_in_one_request_are_refused() -> None:
    request = raw_request()
    request.inputs[0].contents.fp32_contents.extend([0.0] * 6)
    with pytest.raises(InvalidInput, match="mixes"):
        decode(request)


def test_raw_contents_that_are_not_one_for_each_input_are_refused() -> None:
    request = raw_request()
    request.raw_input_contents.append(b"")
    with pytest.raises(InvalidInput, match="1 inputs but 2 raw_input_contents"):
        decode(request)


TOKENS = [bundle_pb2.TensorSpec(name="x", datatype="INT32", shape=[-1, 2], values_below=9)]


@pytest.mark.parametrize("value", [9, -1, 2**31 - 1, -(2**31)])
def test_integers_that_the_model_does_not_know_are_refused_raw_and_typed(value: int) -> None:
    array = np.array([[0, 8], [8, value]], np.int32)
    for request in (
        raw_request(array, "x"),
        typed_request("INT32", [2, 2], int_contents=array.ravel().tolist()),
    ):
        with pytest.raises(InvalidInput, match=rf"^input 'x' has the value {value}: it takes 0 to 8$"):
            codec.decode_inputs(request, TOKENS, 8)


def test_integers_within_the_bounds_and_without_any_pass() -> None:
    array = np.array([[0, 8]], np.int32)
    np.testing.assert_array_equal(codec.decode_inputs(raw_request(array, "x"), TOKENS, 8)["x"], array)
    unbound = [bundle_pb2.TensorSpec(name="x", datatype="INT32", shape=[-1, 2])]
    array = np.array([[-5, 99]], np.int32)
    np.testing.assert_array_equal(codec.decode_inputs(raw_request(array, "x"), unbound, 8)["x"], array)


def test_unknown_missing_and_repeated_inputs_are_refused_by_name() -> None:
    with pytest.raises(InvalidInput, match="unknown input 'pixels': the model has 'images'"):
        decode(raw_request(name="pixels"))
    with pytest.raises(InvalidInput, match="input 'images' is missing"):
        decode(inference_pb2.ModelInferRequest())
    twice = raw_request()
    twice.MergeFrom(raw_request())
    with pytest.raises(InvalidInput, match="input 'images' is sent 2 times"):
        decode(twice)


def test_an_input_in_shared_memory_is_refused() -> None:
    request = raw_request()
    request.inputs[0].parameters["shared_memory_region"].string_param = "region"
    with pytest.raises(InvalidInput, match="shared memory, which is not served"):
        decode(request)


def outputs_of(*names: str) -> inference_pb2.ModelInferRequest:
    requested = [inference_pb2.ModelInferRequest.InferRequestedOutputTensor(name=name) for name in names]
    return inference_pb2.ModelInferRequest(outputs=requested)


def test_outputs_come_as_requested_and_all_of_them_when_none_is_named() -> None:
    assert codec.requested_outputs(outputs_of("features", "logits"), OUTPUTS) == ["features", "logits"]
    assert codec.requested_outputs(outputs_of(), OUTPUTS) == ["logits", "features"]


def test_unknown_and_repeated_outputs_are_refused() -> None:
    with pytest.raises(InvalidInput, match="unknown output 'scores': the model has 'logits', 'features'"):
        codec.requested_outputs(outputs_of("scores"), OUTPUTS)
    with pytest.raises(InvalidInput, match="names an output twice"):
        codec.requested_outputs(outputs_of("logits", "logits"), OUTPUTS)


@pytest.mark.parametrize("parameter", ["classification", "shared_memory_region"])
def test_forms_of_output_that_are_not_served_are_refused_rather_than_ignored(parameter: str) -> None:
    request = outputs_of("logits")
    request.outputs[0].parameters[parameter].int64_param = 3
    with pytest.raises(InvalidInput, match="not served"):
        codec.requested_outputs(request, OUTPUTS)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float16, np.float32, np.float64])
def test_an_output_is_read_back_as_it_was_written(dtype: type) -> None:
    array: np.ndarray = np.arange(12).reshape(3, 4).astype(dtype)[:, ::2]
    response = inference_pb2.ModelInferResponse(
        outputs=[codec.encode_output("logits", array)], raw_output_contents=[codec.raw_bytes(array)]
    )
    found = codec.decode_output(response, "logits")
    assert found.dtype == array.dtype
    assert np.array_equal(found, array)
    with pytest.raises(InvalidInput, match="no raw output 'features', only 'logits'"):
        codec.decode_output(response, "features")


def test_arrays_without_a_wire_type_are_refused() -> None:
    with pytest.raises(InvalidInput, match="complex64 do not travel"):
        codec.encode_input("x", np.zeros(1, np.complex64))
    with pytest.raises(InvalidInput, match="'BYTES' is not served"):
        codec.numpy_type("BYTES")
