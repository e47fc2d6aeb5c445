"""One export: graph, precision, proof, measurement, bundle. Nothing is written unless the proof holds."""

import dataclasses
import hashlib
import math
import os
import statistics
import time
from pathlib import Path

import numpy as np
import onnx
from google.protobuf import json_format, struct_pb2

from protos import bundle_pb2
from serving import preprocess
from serving.bundle import check_target, spec_to_proto, write_bundle
from serving.command import Progress, UserError, progress
from serving.runtime import cpu
from serving.runtime.base import Runtime
from serving.runtime.select import open_runtime
from trainer import __version__, checkpoint, description
from trainer.checkpoint import Loaded
from trainer.data.datasets import open_dataset
from trainer.data.source import Dataset, ImageSource
from trainer.evaluation import check_classes
from trainer.export import parity
from trainer.export.graph import Array
from trainer.export.onnx_writer import INPUT, OUTPUT, write_onnx
from trainer.export.parity import Parity
from trainer.export.quantize import quantize_int8
from trainer.interval import wilson

RUNTIME = "onnxruntime"
PRECISIONS = {"fp32": "model.onnx", "int8": "model.int8.onnx"}
_BUCKETS = (1, 2, 4, 8, 16, 32)
_GOLDEN, _CHECKED = 8, 256  # images in the bundle, and images that the proof looks at
_MEASURED, _TIMED = 32, 50  # images at a time for accuracy, and times that one image is timed
# int8 rounding flips where a sum is taken in another order; on one CPU the answers are equal, on another this much may change.
_INT8_TOLERANCE = 0.05


@dataclasses.dataclass(frozen=True)
class Request:
    """What to export, to where, and how."""

    checkpoint: str
    target: Path  # REPO/NAME/VERSION
    precision: str
    calibration_examples: int
    min_agreement: float
    data_dir: str
    threads: int


def export(request: Request) -> dict[str, object]:
    """Writes the bundle and says what it holds and how near it is to the live model.

    Raises:
      UserError: for bad input, or when the exported model does not say what the live one says; nothing is written then.
    """
    check_target(request.target)
    if request.precision == "int8":  # what it answered here would be wrong, and that would be its proof
        cpu.require_cpu(cpu.INT8, f"int8, for {request.target},", "export fp32, or export int8 on such a CPU")
    loaded = checkpoint.load(request.checkpoint)
    data = open_dataset(loaded.meta["dataset"], request.data_dir or loaded.meta["data_dir"])
    check_classes(loaded, data)
    images = _normalised(data.validation, _CHECKED, loaded)
    model, calibration_hash = write_onnx(loaded.description, loaded.params), loaded.meta["calibration_hash"]
    if request.precision == "int8":
        calibration, calibration_hash = _calibration(request, loaded, data)
        model = quantize_int8(model, calibration, request.threads)
    content = model.SerializeToString()
    runtime = open_runtime(content, RUNTIME, request.threads)
    found = parity.compare(loaded.description, loaded.params, runtime, images)
    if request.precision == "int8":
        parity.require_agreement(found, request.min_agreement)
    else:
        parity.require_equal(found)
    golden = images[:_GOLDEN]
    manifest = _manifest(request, loaded, found, _measure(runtime, request.threads, loaded, data))
    manifest.provenance.calibration_hash = calibration_hash
    file = PRECISIONS[request.precision]
    write_bundle(
        request.target,
        manifest,
        {file: content},
        {INPUT: golden},
        {OUTPUT: runtime.run({INPUT: golden})[OUTPUT]},
    )
    return _result(request, manifest, found, content, model)


def _normalised(source: ImageSource, count: int, loaded: Loaded) -> Array:
    fitted = np.stack([preprocess.fit(image, loaded.preprocess) for image in source.images[:count]])
    return preprocess.normalise(fitted, loaded.preprocess)


def _calibration(request: Request, loaded: Loaded, data: Dataset) -> tuple[Array, str]:
    """Normalised training images as evaluation prepares them, and the sha256 of their values.

    Raises:
      UserError: when fewer are there than asked for.
    """
    available, asked = len(data.train), request.calibration_examples
    if asked > available:
        raise UserError(
            f"--calibration_examples={asked} is above the {available} training images of {data.name}; give fewer"
        )
    images = _normalised(data.train, asked, loaded)
    return images, hashlib.sha256(images.tobytes()).hexdigest()


def _measure(runtime: Runtime, threads: int, loaded: Loaded, data: Dataset) -> list[bundle_pb2.Measurement]:
    """Accuracy on the validation images, and latency of one image, of the file that will be served."""
    images = _normalised(data.validation, len(data.validation), loaded)
    with progress(math.ceil(len(images) / _MEASURED) + _TIMED, "measuring") as bar:
        found = _labels(runtime, images, bar)
        taken_ms = _latencies_ms(runtime, images[:1], bar)
    top1 = float(np.mean(found == data.validation.labels))
    low, high = wilson(top1, len(images))
    where, here = (
        f"{data.name} validation, {len(images)} images",
        f"{threads} threads on the exporting machine of {os.cpu_count()} cores",
    )
    return [
        bundle_pb2.Measurement(
            name="validation_top1", value=top1, low=low, high=high, unit="fraction", where=where
        ),
        bundle_pb2.Measurement(
            name="latency_batch_1",
            value=statistics.median(taken_ms),
            low=min(taken_ms),
            high=max(taken_ms),
            unit="ms",
            where=here,
        ),
    ]


def _labels(runtime: Runtime, images: Array, bar: Progress) -> Array:
    """The first label of each image."""
    found = []
    for start in range(0, len(images), _MEASURED):
        found.append(runtime.run({INPUT: images[start : start + _MEASURED]})[OUTPUT].argmax(axis=-1))
        bar.advance()
    return np.concatenate(found)


def _latencies_ms(runtime: Runtime, image: Array, bar: Progress) -> list[float]:
    taken_ms = []
    for _ in range(_TIMED):
        began_s = time.perf_counter()
        runtime.run({INPUT: image})
        taken_ms.append((time.perf_counter() - began_s) * 1e3)
        bar.advance()
    return taken_ms


def _manifest(
    request: Request, loaded: Loaded, found: Parity, measurements: list[bundle_pb2.Measurement]
) -> bundle_pb2.Manifest:
    model, meta = loaded.description, loaded.meta
    exact = request.precision == "fp32"
    tolerance = bundle_pb2.Tolerance(
        max_abs_difference=found.tolerance if exact else _INT8_TOLERANCE * max(1.0, found.largest_logit),
        min_top1_agreement=1.0 if exact else request.min_agreement,
    )
    manifest = bundle_pb2.Manifest(
        name=request.target.parent.name,
        created_by=f"vitforge {__version__}",
        description=json_format.ParseDict(description.to_json(model), struct_pb2.Struct()),
        inputs=[
            bundle_pb2.TensorSpec(name=INPUT, datatype="FP32", shape=[-1, *model.image_size, model.channels])
        ],
        outputs=[bundle_pb2.TensorSpec(name=OUTPUT, datatype="FP32", shape=[-1, model.num_classes])],
        preprocessing=spec_to_proto(loaded.preprocess),
        labels=loaded.labels,
        batch_buckets=_BUCKETS,
        measurements=measurements,
        provenance=bundle_pb2.Provenance(
            stage=meta["stage"],
            params=description.param_count(model),
            macs=description.macs(model),
            **_hashes(loaded),
        ),
    )
    manifest.models.add(
        file=PRECISIONS[request.precision],
        runtime=RUNTIME,
        precision=request.precision,
        required_cpu_features=[] if exact else cpu.INT8,
        tolerance=tolerance,
    )
    return manifest


def _hashes(loaded: Loaded) -> dict[str, str]:
    names = ("config_text", "config_hash", "weights_hash", "teacher_hash")
    return {name: loaded.meta[name] for name in names}


def _result(
    request: Request, manifest: bundle_pb2.Manifest, found: Parity, content: bytes, model: onnx.ModelProto
) -> dict[str, object]:
    return {
        "bundle": str(request.target),
        "precision": request.precision,
        "file": PRECISIONS[request.precision],
        "stage": manifest.provenance.stage,
        "params": manifest.provenance.params,
        "macs": manifest.provenance.macs,
        "mib": len(content) / 2**20,
        "nodes": len(model.graph.node),
        "max_abs_difference": found.max_abs_difference,
        "top1_agreement": found.top1_agreement,
        "validation_top1": manifest.measurements[0].value,
    }
