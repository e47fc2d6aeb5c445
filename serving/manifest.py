"""What a manifest says: its messages as our own values, and whether all that it says can be true of one model that can be served.

A model takes images (FP32, prepared as the manifest says) or tokens (INT32, counted from 0); it answers `logits`, one for each
class, or `embeddings`, which have no classes.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from protos import bundle_pb2
from serving.preprocess import PreprocessSpec
from serving.tokenise import TokeniserSpec

Array = np.ndarray[Any, np.dtype[Any]]
EMBEDDINGS = "embeddings"  # an output of this name; one of any other name has a number for each class
_DTYPES: Mapping[str, Any] = {"FP32": np.float32, "INT32": np.int32}
_LARGEST_BUCKET = 4096  # a server runs each bucket once before it is ready


def takes_images(manifest: bundle_pb2.Manifest) -> bool:
    """Whether the model's input is made of images; it is made of tokens otherwise."""
    return manifest.inputs[0].datatype == "FP32"


def classifies(manifest: bundle_pb2.Manifest) -> bool:
    """Whether the model says which class an image is of."""
    return takes_images(manifest) and manifest.outputs[0].name != EMBEDDINGS


def spec_to_proto(spec: PreprocessSpec) -> bundle_pb2.Preprocessing:
    """The manifest's form of a spec."""
    return bundle_pb2.Preprocessing(**spec.to_json())


def spec_from_proto(message: bundle_pb2.Preprocessing) -> PreprocessSpec:
    """The spec in a manifest; ValueError when it makes no sense."""
    values = {field.name: getattr(message, field.name) for field in message.DESCRIPTOR.fields}
    values["rounding"] = values["rounding"] or "nearest"  # bundles of format version 1 do not say
    return PreprocessSpec.from_json(values)


def tokeniser_to_proto(spec: TokeniserSpec) -> bundle_pb2.Tokeniser:
    """The manifest's form of a tokeniser; the digest of its vocabulary stands with those of the other files."""
    values = spec.to_json()
    del values["vocab_sha256"]
    return bundle_pb2.Tokeniser(**values)


def tokeniser_of(manifest: bundle_pb2.Manifest) -> TokeniserSpec | None:
    """The tokeniser in a manifest, None where there is none; ValueError when it makes no sense."""
    if not manifest.HasField("tokeniser"):
        return None
    message = manifest.tokeniser
    values = {field.name: getattr(message, field.name) for field in message.DESCRIPTOR.fields}
    digest = manifest.digests.get(message.vocab_file, "").removeprefix("sha256:")
    return TokeniserSpec.from_json({**values, "vocab_sha256": digest})


def problem_of(manifest: bundle_pb2.Manifest) -> str:
    """What cannot be true of one model that can be served, in one line; "" when everything fits. It has inputs and outputs."""
    problems = (_tensors, _images if takes_images(manifest) else _tokens, _rest)
    return next((said for problem in problems if (said := problem(manifest))), "")


def _tensors(manifest: bundle_pb2.Manifest) -> str:
    for kind, tensors, types in (
        ("input", manifest.inputs, ("FP32", "INT32")),
        ("output", manifest.outputs, ("FP32",)),
    ):
        for tensor in tensors:
            shaped = tensor.shape[:1] == [-1] and min(tensor.shape[1:], default=0) >= 1
            if tensor.datatype not in types or not shaped or tensor.values_below < 0:
                found, allowed = f"{tensor.datatype} {list(tensor.shape)}", " or ".join(types)
                return f"{kind} {tensor.name!r} is {found}, it must be {allowed} [-1, …] with positive sizes"
    return ""


def _images(manifest: bundle_pb2.Manifest) -> str:
    if not manifest.HasField("preprocessing"):
        return "no preprocessing says how the images that it takes are made"
    try:
        spec = spec_from_proto(manifest.preprocessing)
    except ValueError as error:
        return f"its preprocessing cannot be used: {error}"
    taken, made = list(manifest.inputs[0].shape[1:]), [spec.height, spec.width, spec.channels]
    if taken != made:
        return f"the model takes images of {taken}, its preprocessing makes {made}"
    return "a tokeniser for a model that takes images" if manifest.HasField("tokeniser") else ""


def _tokens(manifest: bundle_pb2.Manifest) -> str:
    taken = list(manifest.inputs[0].shape)
    if len(taken) != 2:
        return f"input {manifest.inputs[0].name!r} is INT32 {taken}, tokens are [-1, T]"
    if manifest.HasField("preprocessing"):
        return "preprocessing of images for a model that takes tokens"
    try:
        tokeniser = tokeniser_of(manifest)
    except ValueError as error:
        return f"its tokeniser cannot be used (is its vocabulary a file of the bundle?): {error}"
    if tokeniser and tokeniser.max_tokens != taken[1]:
        return f"the model takes {taken[1]} tokens, its tokeniser makes {tokeniser.max_tokens}"
    return ""


def _rest(manifest: bundle_pb2.Manifest) -> str:
    labels, output = len(manifest.labels), manifest.outputs[0]
    if labels and output.name == EMBEDDINGS:
        return f"{labels} labels for embeddings, which have no classes"
    if labels and labels != output.shape[-1]:
        return f"{labels} labels for {output.shape[-1]} classes"
    if not all(0 < bucket <= _LARGEST_BUCKET for bucket in manifest.batch_buckets):
        return f"batch buckets {list(manifest.batch_buckets)}, they must lie in 1 to {_LARGEST_BUCKET}"
    if not (math.isfinite(manifest.logit_scale) and manifest.logit_scale >= 0):
        return (
            f"the logit scale {manifest.logit_scale}, it must be a positive number, or 0 where there is none"
        )
    return ""


def golden_problem_of(
    manifest: bundle_pb2.Manifest, inputs: Mapping[str, Array], outputs: Mapping[str, Array], file: str
) -> str:
    """Where the golden arrays, which lie in `file`, are not what the signature says; "" when they are."""
    counts = set()
    for kind, tensors, golden in (
        ("inputs", manifest.inputs, inputs),
        ("outputs", manifest.outputs, outputs),
    ):
        for tensor in tensors:
            array, name = golden.get(tensor.name), f"{kind}/{tensor.name}"
            if array is None:
                return f"{file} has no {name}"
            dtype = np.dtype(_DTYPES[tensor.datatype])
            if array.dtype != dtype or array.shape[1:] != tuple(tensor.shape[1:]) or not array.size:
                found = f"{array.dtype} {list(array.shape)}"
                return f"{name} in {file} is {found}, the signature says {dtype} {list(tensor.shape)}"
            if tensor.values_below and not 0 <= array.min() <= array.max() < tensor.values_below:
                found, last = f"{array.min()} to {array.max()}", tensor.values_below - 1
                return f"{name} in {file} has values from {found}, the signature says 0 to {last}"
            counts.add(len(array))
    return "" if len(counts) == 1 else f"{file} holds unequal numbers of inputs and outputs: {sorted(counts)}"
