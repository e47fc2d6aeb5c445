"""Tensors on the wire and tensors in memory: the inference protocol's messages to numpy arrays and back.

Servers and clients share it. A request may carry its tensors raw (bytes, little-endian) or typed (repeated numbers); what we send
is always raw, because that is the only form every client reads. It checks what a message says against what a model's signature
says, and knows nothing of calls or status codes.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from protos import bundle_pb2, inference_pb2
from serving.errors import InvalidInput

# Datatype → numpy type as it travels, and the field that holds it typed ("": only raw).
_TYPES: Mapping[str, tuple[str, str]] = {
    "BOOL": ("?", "bool_contents"),
    "UINT8": ("u1", "uint_contents"),
    "UINT16": ("<u2", "uint_contents"),
    "UINT32": ("<u4", "uint_contents"),
    "UINT64": ("<u8", "uint64_contents"),
    "INT8": ("i1", "int_contents"),
    "INT16": ("<i2", "int_contents"),
    "INT32": ("<i4", "int_contents"),
    "INT64": ("<i8", "int64_contents"),
    "FP16": ("<f2", ""),
    "FP32": ("<f4", "fp32_contents"),
    "FP64": ("<f8", "fp64_contents"),
}


def numpy_type(datatype: str) -> np.dtype:
    """The numpy type of the protocol's `datatype`.

    Raises:
      InvalidInput: for a type that is not a fixed number of bytes wide, or unknown.
    """
    if datatype not in _TYPES:
        raise InvalidInput(f"datatype '{datatype}' is not served: use one of {', '.join(_TYPES)}")
    return np.dtype(_TYPES[datatype][0])


def datatype_of(dtype: np.dtype) -> str:
    """The protocol's name of a numpy type. Raises InvalidInput where it has none."""
    for name, (numpy_name, _) in _TYPES.items():
        if np.dtype(numpy_name) == dtype:
            return name
    raise InvalidInput(f"arrays of type {dtype} do not travel: use one of {', '.join(_TYPES)}")


def decode_inputs(
    request: inference_pb2.ModelInferRequest, signature: Sequence[bundle_pb2.TensorSpec], max_batch_size: int
) -> dict[str, np.ndarray]:
    """The request's input tensors by name, each exactly as `signature` wants it. Raw ones are views of the message's bytes.

    Raises:
      InvalidInput: for a missing, unknown or repeated input, another type or shape, an empty or too large batch, bytes that do
        not match the shape, integers beyond those that the signature allows, or raw and typed contents in one request.
    """
    raw = request.raw_input_contents
    expected = {spec.name: spec for spec in signature}
    _check_names([tensor.name for tensor in request.inputs], expected)
    if raw and any(tensor.HasField("contents") for tensor in request.inputs):
        raise InvalidInput("the request mixes raw_input_contents and typed contents: send all inputs one way")
    if raw and len(raw) != len(request.inputs):
        raise InvalidInput(f"the request has {len(request.inputs)} inputs but {len(raw)} raw_input_contents")
    decoded = {}
    for index, tensor in enumerate(request.inputs):
        _check_tensor(tensor, expected[tensor.name], max_batch_size)
        decoded[tensor.name] = _from_raw(tensor, raw[index]) if raw else _from_typed(tensor)
        _check_values(decoded[tensor.name], expected[tensor.name])
    return decoded


def requested_outputs(
    request: inference_pb2.ModelInferRequest, signature: Sequence[bundle_pb2.TensorSpec]
) -> list[str]:
    """The names of the outputs that the request asks for, in its order; all of `signature` when it names none.

    Raises:
      InvalidInput: for an unknown or repeated output, or a form of output that is not served.
    """
    known = [spec.name for spec in signature]
    names = [output.name for output in request.outputs]
    for output in request.outputs:
        if output.name not in known:
            raise InvalidInput(f"unknown output '{output.name}': the model has {_listed(known)}")
        if "shared_memory_region" in output.parameters:
            raise InvalidInput(f"output '{output.name}' asks for shared memory, which is not served")
        if "classification" in output.parameters:
            raise InvalidInput(
                f"output '{output.name}' asks for 'classification', which is not served: call Vision/Classify"
            )
    if len(set(names)) != len(names):
        raise InvalidInput(f"the request names an output twice: {_listed(names)}")
    return names or known


def encode_input(name: str, array: np.ndarray) -> inference_pb2.ModelInferRequest.InferInputTensor:
    """The description of `array` as an input; its contents are `raw_bytes(array)`."""
    return inference_pb2.ModelInferRequest.InferInputTensor(
        name=name, datatype=datatype_of(array.dtype), shape=array.shape
    )


def encode_output(name: str, array: np.ndarray) -> inference_pb2.ModelInferResponse.InferOutputTensor:
    """The description of `array` as an output; its contents are `raw_bytes(array)`."""
    return inference_pb2.ModelInferResponse.InferOutputTensor(
        name=name, datatype=datatype_of(array.dtype), shape=array.shape
    )


def raw_bytes(array: np.ndarray) -> bytes:
    """The bytes of `array`, row by row, as the protocol carries them."""
    return np.ascontiguousarray(array, numpy_type(datatype_of(array.dtype))).tobytes()


def decode_output(response: inference_pb2.ModelInferResponse, name: str) -> np.ndarray:
    """The output `name` of a response whose contents are raw. Raises InvalidInput when it is not there or does not fit."""
    names = [output.name for output in response.outputs]
    if name not in names or len(response.raw_output_contents) != len(names):
        raise InvalidInput(f"the answer has no raw output '{name}', only {_listed(names)}")
    index = names.index(name)
    return _from_raw(response.outputs[index], response.raw_output_contents[index])


def _check_names(names: Sequence[str], expected: Mapping[str, bundle_pb2.TensorSpec]) -> None:
    for name in names:
        if name not in expected:
            raise InvalidInput(f"unknown input '{name}': the model has {_listed(expected)}")
        if names.count(name) > 1:
            raise InvalidInput(f"input '{name}' is sent {names.count(name)} times")
    for name in expected:
        if name not in names:
            raise InvalidInput(f"input '{name}' is missing: the model has {_listed(expected)}")


def _check_tensor(
    tensor: inference_pb2.ModelInferRequest.InferInputTensor, spec: bundle_pb2.TensorSpec, max_batch_size: int
) -> None:
    if "shared_memory_region" in tensor.parameters:
        raise InvalidInput(
            f"input '{tensor.name}' lies in shared memory, which is not served: send its bytes"
        )
    if tensor.datatype != spec.datatype:
        raise InvalidInput(
            f"input '{tensor.name}' has datatype {tensor.datatype or 'none'}, expected {spec.datatype}"
        )
    shape, wanted = tuple(tensor.shape), tuple(spec.shape)
    if len(shape) != len(wanted) or shape[1:] != wanted[1:]:
        raise InvalidInput(
            f"input '{tensor.name}' has shape {_written(shape)}, expected {_written(wanted)}, "
            "where -1 is the batch: it may be any size up to the limit and is never left out"
        )
    if shape[0] < 1:
        raise InvalidInput(f"input '{tensor.name}' has shape {_written(shape)}: a batch has at least one row")
    if shape[0] > max_batch_size:
        raise InvalidInput(
            f"input '{tensor.name}' has a batch of {shape[0]}: batch-size must be <= {max_batch_size}"
        )


def _check_values(array: np.ndarray, spec: bundle_pb2.TensorSpec) -> None:
    """Tokens that a model does not know would fail inside of it, and negative ones would count from the end of its table."""
    if spec.values_below:
        outside = array[(array < 0) | (array >= spec.values_below)]
        if outside.size:
            raise InvalidInput(
                f"input '{spec.name}' has the value {outside[0]}: it takes 0 to {spec.values_below - 1}"
            )


Tensor = inference_pb2.ModelInferRequest.InferInputTensor | inference_pb2.ModelInferResponse.InferOutputTensor


def _from_raw(tensor: Tensor, contents: bytes) -> np.ndarray:
    dtype = numpy_type(tensor.datatype)
    wanted_bytes = math.prod(tensor.shape) * dtype.itemsize
    if len(contents) != wanted_bytes:
        raise InvalidInput(
            f"'{tensor.name}' has {len(contents)} bytes, but {tensor.datatype} of shape "
            f"{_written(tensor.shape)} takes {wanted_bytes}"
        )
    return np.frombuffer(contents, dtype).reshape(tuple(tensor.shape))


def _from_typed(tensor: Tensor) -> np.ndarray:
    dtype, field = numpy_type(tensor.datatype), _TYPES[tensor.datatype][1]
    values = getattr(tensor.contents, field) if field else ()
    wanted = math.prod(tensor.shape)
    if len(values) != wanted:
        raise InvalidInput(
            f"'{tensor.name}' has {len(values)} values in contents.{field or '(raw only)'}, but shape "
            f"{_written(tensor.shape)} takes {wanted}: send them there, or as raw_input_contents"
        )
    try:
        return np.fromiter(values, dtype, wanted).reshape(tuple(tensor.shape))
    except OverflowError as error:
        raise InvalidInput(
            f"'{tensor.name}' has a value that {tensor.datatype} cannot hold: {error}"
        ) from error


def _written(shape: Sequence[int]) -> str:
    return "[" + ",".join(map(str, shape)) + "]"


def _listed(names: Sequence[str] | Mapping[str, object]) -> str:
    return ", ".join(f"'{name}'" for name in names) or "none"
