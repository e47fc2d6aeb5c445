"""One export: graph, precision, proof, measurement, bundle. Nothing is written unless the proof holds."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf import json_format, struct_pb2

from protos import bundle_pb2
from serving.bundle import check_target, spec_to_proto, tokeniser_to_proto, write_bundle
from serving.command import UserError
from serving.tokenise import spec_of
from trainer import __version__, description
from trainer.description import TextTower, TwoTowers
from trainer.export import measure, onnx_writer, parity
from trainer.export.candidate import RUNTIME, Candidate, Prover, prove_all
from trainer.export.fastest import fastest, why_shipped
from trainer.export.gate import Gate
from trainer.export.graph import Array
from trainer.export.int8.write import required_features
from trainer.export.parity import Reference
from trainer.export.samples import Samples
from trainer.export.signature import MODEL, Signature, Single, Tensor
from trainer.export.subject import Subject, target_of
from trainer.precisions import AUTO, PRECISIONS

_BUCKETS = (1, 2, 4, 8, 16, 32)
_GOLDEN = 8  # inputs in the bundle
_MIB = 2**20
# int8 rounding flips where a sum is taken in another order; on one CPU the answers are equal, on another this much may change.
_INT8_TOLERANCE = 0.05

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Request:
    """To where, and how; `batch` is the images in a call that precision `auto` is measured with."""

    target: Path  # REPO/NAME/VERSION
    precision: str
    calibration_examples: int
    min_agreement: float
    threads: int
    batch: int = 1
    min_top1: float = 0.0  # on the validation images, of anything but fp32


@dataclasses.dataclass(frozen=True)
class _Proven:
    """One graph whose file says what the live model says; with precision `auto`, what each precision came to."""

    name: str
    model: Single
    names: Signature
    golden: Array
    file: Candidate
    tried: dict[str, Any] = dataclasses.field(default_factory=dict)


def export(subject: Subject, request: Request) -> dict[str, object]:
    """Writes the bundle (two for a pair) and says what it holds and how near it is to the live model.

    Raises:
      UserError: for bad input, or when the exported model does not say what the live one says; nothing is written then.
    """
    check_target(request.target)
    for name in subject.graphs():
        check_target(target_of(request.target, name))
    written = onnx_writer.graphs(subject.description, subject.params)
    proven = [_prove(subject, request, name, graph) for name, graph in written.items()]
    results = [_write(subject, request, one) for one in proven]
    return results[0] if len(results) == 1 else {"bundles": results}


def _prove(subject: Subject, request: Request, name: str, graph: onnx.ModelProto) -> _Proven:
    model = subject.graphs()[name]
    samples = subject.samples(model)
    if request.precision != "fp32" and name != MODEL:
        raise UserError(f"{request.precision} is for classifiers; export a pair of towers as fp32")
    reference = _reference(subject, name, samples.proof())
    prover = Prover(
        graph,
        reference,
        lambda: samples.calibration(request.calibration_examples),
        _gate(request, samples, reference.names),
        request.threads,
    )
    given = (name, model, reference.names, reference.inputs[:_GOLDEN])
    if request.precision == AUTO:
        return _Proven(*given, *_fastest(prover, request.batch))
    return _Proven(*given, prover.prove(request.precision))


def _gate(request: Request, samples: Samples, names: Signature) -> Gate:
    if request.min_top1 <= 0:
        return Gate(request.min_agreement)
    scored = samples.scored()
    if scored is None:
        raise UserError("--min_top1 needs the labelled images of a classifier's --checkpoint; leave it out")
    images, labels, _ = scored
    return Gate(
        request.min_agreement,
        request.min_top1,
        lambda runtime: measure.top1(runtime, names, images, labels),
    )


def _reference(subject: Subject, name: str, inputs: Array) -> Reference:
    if isinstance(subject.description, TwoTowers):
        return parity.tower_reference(subject.description, subject.params, name, inputs)
    return parity.reference(subject.description, subject.params, inputs)


def _fastest(prover: Prover, batch: int) -> tuple[Candidate, dict[str, Any]]:
    """The candidate to ship, and for every precision its p50_ms and mib, or why it was refused."""
    # A graph that differs in float32 is a defect, and no other precision would cure it.
    fp32 = prover.prove("fp32")
    others = [name for name in PRECISIONS if name != "fp32"]
    # What the model itself does not keep, fewer bits keep by chance at best.
    if why := prover.gate.why_refused("fp32", fp32.found, fp32.runtime):
        held, refused = list[Candidate](), dict.fromkeys(others, f"not tried: {why}")
    else:
        held, refused = prove_all(prover, others)
    held = [fp32, *held]
    inputs = np.resize(prover.reference.inputs, (batch, *prover.reference.inputs.shape[1:]))
    choice = fastest(held, prover.reference.names.input.name, inputs)
    tried: dict[str, Any] = {name: {"refused": why} for name, why in refused.items()}
    for one, timing in zip(held, choice.timings, strict=True):
        tried[one.precision] = {**dataclasses.asdict(timing), "mib": len(one.content) / _MIB}
        if one is not choice.chosen:
            one.runtime.close()
    _log.info("%s", why_shipped(choice.chosen.precision, tried, batch))
    return choice.chosen, tried


def _write(subject: Subject, request: Request, proven: _Proven) -> dict[str, object]:
    target, names = target_of(request.target, proven.name), proven.names
    samples = subject.samples(proven.model)
    manifest = _manifest(subject, request, proven, target)
    manifest.measurements.extend(
        measure.measurements(proven.file.runtime, names, samples, proven.golden[:1], request.threads)
    )
    files = {PRECISIONS[proven.file.precision]: proven.file.content}
    golden = {names.input.name: proven.golden}
    if manifest.HasField("tokeniser") and subject.vocab is not None:
        files[manifest.tokeniser.vocab_file] = subject.vocab.read_bytes()
    write_bundle(target, manifest, files, golden, proven.file.runtime.run(golden))
    return _result(manifest, proven, target)


def _manifest(subject: Subject, request: Request, proven: _Proven, target: Path) -> bundle_pb2.Manifest:
    model, found, precision = proven.model, proven.file.found, proven.file.precision
    calibrated_on = proven.file.calibration_hash or subject.provenance["calibration_hash"]
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
            **{**subject.provenance, "calibration_hash": calibrated_on},
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
        file=PRECISIONS[precision],
        runtime=RUNTIME,
        precision=precision,
        required_cpu_features=required_features(proven.file.graph),
        tolerance=bundle_pb2.Tolerance(
            max_abs_difference=_INT8_TOLERANCE * max(1.0, found.largest_logit)
            if precision == "int8"
            else found.tolerance,
            min_top1_agreement=request.min_agreement if precision == "int8" else 1.0,
        ),
    )
    return manifest


def _spec(tensor: Tensor) -> bundle_pb2.TensorSpec:
    return bundle_pb2.TensorSpec(**dataclasses.asdict(tensor))


def _result(manifest: bundle_pb2.Manifest, proven: _Proven, target: Path) -> dict[str, object]:
    scored = {one.name: one.value for one in manifest.measurements}
    file = proven.file
    said: dict[str, object] = {
        "bundle": str(target),
        "precision": file.precision,
        "file": PRECISIONS[file.precision],
        "stage": manifest.provenance.stage,
        "params": manifest.provenance.params,
        "macs": manifest.provenance.macs,
        "mib": len(file.content) / _MIB,
        "nodes": len(file.graph.graph.node),
        "max_abs_difference": file.found.max_abs_difference,
        "top1_agreement": file.found.top1_agreement,
        "validation_top1": scored.get("validation_top1"),
    }
    if file.precision == "int8":
        said["float_products"] = list(file.floats)
    if proven.tried:
        said["tried"] = proven.tried
    return said
