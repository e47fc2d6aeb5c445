"""One export: graph, precision, proof, measurement, bundle. Nothing is written unless the proof holds."""

import dataclasses
import hashlib
from pathlib import Path

import onnx
from google.protobuf import json_format, struct_pb2

from protos import bundle_pb2
from serving.bundle import check_target, spec_to_proto, tokeniser_to_proto, write_bundle
from serving.command import UserError
from serving.runtime import cpu
from serving.runtime.base import Runtime
from serving.runtime.select import open_runtime
from serving.tokenise import spec_of
from trainer import __version__, description
from trainer.description import TextTower, TwoTowers
from trainer.export import onnx_writer, parity
from trainer.export.graph import Array
from trainer.export.int8_weights import store_int8_weights
from trainer.export.measure import measure
from trainer.export.parity import Parity
from trainer.export.quantize import quantize_int8
from trainer.export.signature import MODEL, Signature, Single, Tensor, signatures
from trainer.export.subject import Subject, target_of
from trainer.precisions import PRECISIONS

RUNTIME = "onnxruntime"
_BUCKETS = (1, 2, 4, 8, 16, 32)
_GOLDEN = 8  # inputs in the bundle
# int8 rounding flips where a sum is taken in another order; on one CPU the answers are equal, on another this much may change.
_INT8_TOLERANCE = 0.05


@dataclasses.dataclass(frozen=True)
class Request:
    """To where, and how."""

    target: Path  # REPO/NAME/VERSION
    precision: str
    calibration_examples: int
    min_agreement: float
    threads: int


@dataclasses.dataclass(frozen=True)
class _Proven:
    """One graph whose file says what the live model says."""

    name: str
    model: Single
    names: Signature
    graph: onnx.ModelProto
    content: bytes
    runtime: Runtime
    found: Parity
    golden: Array
    calibration_hash: str


def check(request: Request) -> None:
    """Refuses what cannot end well, before anything is read.

    Raises:
      UserError: for a target that is taken or none, or a precision that this CPU cannot prove.
    """
    check_target(request.target)
    if request.precision == "int8":  # what it answered here would be wrong, and that would be its proof
        cpu.require_cpu(cpu.INT8, f"int8, for {request.target},", "export fp32, or export int8 on such a CPU")


def export(subject: Subject, request: Request) -> dict[str, object]:
    """Writes the bundle (two for a pair) and says what it holds and how near it is to the live model.

    Raises:
      UserError: for bad input, or when the exported model does not say what the live one says; nothing is written then.
    """
    check(request)
    for name in subject.graphs():
        check_target(target_of(request.target, name))
    written = onnx_writer.graphs(subject.description, subject.params)
    proven = [_prove(subject, request, name, graph) for name, graph in written.items()]
    results = [_write(subject, request, one) for one in proven]
    return results[0] if len(results) == 1 else {"bundles": results}


def _prove(subject: Subject, request: Request, name: str, graph: onnx.ModelProto) -> _Proven:
    model, calibration_hash = subject.graphs()[name], subject.provenance["calibration_hash"]
    samples = subject.samples(model)
    if request.precision != "fp32" and name != MODEL:
        raise UserError(f"{request.precision} is for classifiers; export a pair of towers as fp32")
    if request.precision == "int8_weights":
        graph = store_int8_weights(graph)
    if request.precision == "int8":
        calibration = samples.calibration(request.calibration_examples)
        calibration_hash = hashlib.sha256(calibration.tobytes()).hexdigest()
        graph = quantize_int8(graph, calibration, request.threads)
    content = graph.SerializeToString()
    runtime = open_runtime(content, RUNTIME, request.threads)
    inputs = samples.proof()
    found = _compare(subject, name, runtime, inputs)
    if request.precision == "fp32":
        parity.require_equal(found)
    else:
        parity.require_agreement(found, request.precision, request.min_agreement)
    names = signatures(subject.description)[name]
    return _Proven(name, model, names, graph, content, runtime, found, inputs[:_GOLDEN], calibration_hash)


def _compare(subject: Subject, name: str, runtime: Runtime, inputs: Array) -> Parity:
    if isinstance(subject.description, TwoTowers):
        return parity.compare_tower(subject.description, subject.params, name, runtime, inputs)
    return parity.compare(subject.description, subject.params, runtime, inputs)


def _write(subject: Subject, request: Request, proven: _Proven) -> dict[str, object]:
    target, names = target_of(request.target, proven.name), proven.names
    samples = subject.samples(proven.model)
    manifest = _manifest(subject, request, proven, target)
    manifest.measurements.extend(measure(proven.runtime, names, samples, proven.golden[:1], request.threads))
    files, golden = {PRECISIONS[request.precision]: proven.content}, {names.input.name: proven.golden}
    if manifest.HasField("tokeniser") and subject.vocab is not None:
        files[manifest.tokeniser.vocab_file] = subject.vocab.read_bytes()
    write_bundle(target, manifest, files, golden, proven.runtime.run(golden))
    return _result(request, manifest, proven, target)


def _manifest(subject: Subject, request: Request, proven: _Proven, target: Path) -> bundle_pb2.Manifest:
    model, found, integer = proven.model, proven.found, request.precision == "int8"
    manifest = bundle_pb2.Manifest(
        name=target.parent.name,
        created_by=f"vitforge {__version__}",
        description=json_format.ParseDict(description.to_json(model), struct_pb2.Struct()),
        inputs=[_spec(proven.names.input)],
        outputs=[_spec(proven.names.output)],
        labels=subject.labels if proven.name == MODEL else (),
        batch_buckets=_BUCKETS,
        provenance=bundle_pb2.Provenance(
            params=description.param_count(model),
            macs=description.macs(model),
            **{**subject.provenance, "calibration_hash": proven.calibration_hash},
        ),
    )
    if isinstance(model, TextTower):
        if subject.vocab is not None:
            manifest.tokeniser.CopyFrom(tokeniser_to_proto(spec_of(subject.vocab, model.max_tokens)))
    elif subject.preprocess is not None:
        manifest.preprocessing.CopyFrom(spec_to_proto(subject.preprocess))
    if isinstance(subject.description, TwoTowers):
        manifest.logit_scale = onnx_writer.multiplier(subject.params)
    manifest.models.add(
        file=PRECISIONS[request.precision],
        runtime=RUNTIME,
        precision=request.precision,
        required_cpu_features=cpu.INT8 if integer else [],
        tolerance=bundle_pb2.Tolerance(
            max_abs_difference=_INT8_TOLERANCE * max(1.0, found.largest_logit)
            if integer
            else found.tolerance,
            min_top1_agreement=request.min_agreement if integer else 1.0,
        ),
    )
    return manifest


def _spec(tensor: Tensor) -> bundle_pb2.TensorSpec:
    return bundle_pb2.TensorSpec(**dataclasses.asdict(tensor))


def _result(
    request: Request, manifest: bundle_pb2.Manifest, proven: _Proven, target: Path
) -> dict[str, object]:
    scored = {one.name: one.value for one in manifest.measurements}
    return {
        "bundle": str(target),
        "precision": request.precision,
        "file": PRECISIONS[request.precision],
        "stage": manifest.provenance.stage,
        "params": manifest.provenance.params,
        "macs": manifest.provenance.macs,
        "mib": len(proven.content) / 2**20,
        "nodes": len(proven.graph.graph.node),
        "max_abs_difference": proven.found.max_abs_difference,
        "top1_agreement": proven.found.top1_agreement,
        "validation_top1": scored.get("validation_top1"),
    }
