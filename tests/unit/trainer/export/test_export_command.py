import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format

from serving import preprocess
from serving.bundle import read_bundle
from serving.command import run_command
from serving.repository import Repository
from serving.runtime import cpu
from serving.runtime.select import open_runtime
from tests.support.small_models import DIGITS, DIGITS_SPEC, SMALL, UNEVEN, logits, random_params, save_digits
from trainer import checkpoint, description
from trainer.data.datasets import open_dataset
from trainer.export import job, onnx_writer
from trainer.export.__main__ import main
from trainer.export.int8.write import signed
from trainer.export.onnx_writer import INPUT, OUTPUT
from trainer.models.build import Params

MODEL = dataclasses.replace(UNEVEN, blocks=UNEVEN.blocks[:2])
Exported = tuple[Path, dict[str, Any]]
BARS = ("live model", "calibration", "smoothing", "exported file", "accuracy", "latency")
WORST = "int8, each product alone"  # where the agreement that was asked for is missed


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("teacher")
    save_digits(path, MODEL)
    return path


def _export(checkpoint: Path, output: Path, *more: str) -> dict[str, Any]:
    return main([f"--checkpoint={checkpoint}", f"--output={output}", "--threads=1", *more])


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def fp32(teacher: Path, repository: Path) -> Exported:
    target = repository / "small" / "1"
    return target, _export(teacher, target)


@pytest.fixture(scope="module")
def int8(teacher: Path, repository: Path) -> Exported:
    # Random weights decide by a hair's breadth more often than trained ones.
    target = repository / "small_int8" / "1"
    return target, _export(
        teacher, target, "--precision=int8", "--calibration_examples=100", "--min_agreement=0.8"
    )


@pytest.fixture(params=["fp32", "int8"])
def exported(request: pytest.FixtureRequest) -> tuple[str, Path, dict[str, Any]]:
    target, result = request.getfixturevalue(request.param)
    return request.param, target, result


Each = tuple[str, Path, dict[str, Any]]


def test_the_result_says_what_was_written_and_how_near_it_is(exported: Each) -> None:
    precision, target, result = exported
    assert json.loads(json.dumps(result)) == result  # the last line of stdout
    file = target / job.PRECISIONS[precision]
    assert result["bundle"] == str(target)
    assert (result["precision"], result["stage"]) == (precision, "trained")
    assert result["mib"] == file.stat().st_size / 2**20
    assert result["params"] == description.param_count(MODEL)
    assert result["macs"] == description.macs(MODEL)
    assert 0.8 <= result["top1_agreement"] <= 1
    if precision == "fp32":
        assert result["top1_agreement"] == 1
        assert result["max_abs_difference"] < 1e-3


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_every_long_step_shows_how_far_it_is(
    precision: str, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--calibration_examples=100", "--min_agreement=0.8")
    _export(teacher, tmp_path / "small" / "1", f"--precision={precision}", *more)
    said = capsys.readouterr()
    ends = [
        line.partition(" ")[0]
        for line in said.err.splitlines()
        if "100/100" not in line and " 0 s left" in line
    ]
    assert said.out == ""
    assert ends == [bar.partition(" ")[0] for bar in BARS if precision == "int8" or bar not in BARS[1:3]]


def test_int8_weights_are_exported_and_served_on_any_cpu_in_fewer_bytes(
    fp32: tuple[Path, dict[str, Any]], teacher: Path, tmp_path: Path
) -> None:
    target = tmp_path / "small" / "1"
    said = _export(teacher, target, "--precision=int8_weights", "--min_agreement=0.8")
    assert said["file"] == "model.int8_weights.onnx"
    assert said["mib"] < fp32[1]["mib"]  # so small a model is mostly names
    found = Repository(tmp_path, open_runtime, threads=1)
    found.load_all()
    model = found.get("small")
    assert model.precision == "int8_weights"
    assert not model.bundle.manifest.models[0].required_cpu_features


def test_every_file_is_verified_and_there_are_no_others(exported: Each) -> None:
    precision, target, _ = exported
    assert {file.name for file in target.iterdir()} == {
        "manifest.json",
        "SHA256SUMS",
        "golden.npz",
        job.PRECISIONS[precision],
    }
    assert read_bundle(target).manifest.digests.keys() == {"golden.npz", job.PRECISIONS[precision]}


def test_the_manifest_says_all_that_a_server_and_a_reader_need(exported: Each, teacher: Path) -> None:
    precision, target, _ = exported
    manifest, loaded = read_bundle(target).manifest, checkpoint.load(teacher)
    assert manifest.name == target.parent.name
    assert description.from_json(json_format.MessageToDict(manifest.description)) == MODEL
    assert tuple(manifest.labels) == DIGITS
    assert read_bundle(target).preprocess == DIGITS_SPEC
    assert (manifest.inputs[0].name, list(manifest.inputs[0].shape)) == (INPUT, [-1, 8, 8, 1])
    assert (manifest.outputs[0].name, list(manifest.outputs[0].shape)) == (OUTPUT, [-1, 10])
    assert manifest.inputs[0].datatype == manifest.outputs[0].datatype == "FP32"
    assert manifest.batch_buckets
    provenance = manifest.provenance
    assert provenance.weights_hash == loaded.meta["weights_hash"]
    assert provenance.config_hash == "c0ffee"
    assert provenance.config_text == 'dataset = "digits"\n'
    assert (provenance.stage, provenance.params) == ("trained", description.param_count(MODEL))
    (file,) = manifest.models
    assert (file.precision, file.runtime, file.file) == (precision, "onnxruntime", job.PRECISIONS[precision])
    # Signed weights are right only on such CPUs; elsewhere they are written unsigned, right everywhere.
    assert bool(file.required_cpu_features) == (precision == "int8" and signed())
    assert file.tolerance.max_abs_difference > 0
    top1, latency = manifest.measurements
    assert top1.low <= top1.value <= top1.high
    assert latency.unit == "ms"
    assert 0 < latency.low <= latency.value <= latency.high
    assert "1 threads" in latency.where


def test_golden_answers_are_the_models_own_to_real_images(exported: Each, teacher: Path) -> None:
    precision, target, _ = exported
    bundle, loaded = read_bundle(target), checkpoint.load(teacher)
    images = preprocess.normalise(open_dataset("digits").validation.images[:8], DIGITS_SPEC)
    np.testing.assert_array_equal(bundle.golden_inputs[INPUT], images)
    wanted, found = logits(MODEL, loaded.params, images), bundle.golden_outputs[OUTPUT]
    # float32 in another order; eight bits leave a few percent of logits of about 10.
    np.testing.assert_allclose(found, wanted, atol=1e-4 if precision == "fp32" else 1.5)


def test_the_measured_accuracy_is_that_of_the_file_on_the_validation_images(exported: Each) -> None:
    _, target, result = exported
    bundle, data = read_bundle(target), open_dataset("digits").validation
    runtime = open_runtime(bundle.model_file()[1], "onnxruntime", 1)
    images = preprocess.normalise(data.images, DIGITS_SPEC)
    found = np.concatenate(
        [runtime.run({INPUT: images[start : start + 32]})[OUTPUT] for start in range(0, 180, 32)]
    )
    top1 = np.mean(found.argmax(-1) == data.labels)
    assert result["validation_top1"] == bundle.manifest.measurements[0].value == pytest.approx(top1)


def test_the_repository_loads_both_and_they_answer(fp32: Exported, int8: Exported, repository: Path) -> None:
    models = Repository(repository, open_runtime, threads=1)
    models.load_all()
    assert [entry.state for entry in models.index()] == ["READY", "READY"]
    for name in ("small", "small_int8"):
        assert models.get(name).run(np.zeros((3, 8, 8, 1), np.float32)).shape == (3, 10)


def test_a_cut_models_hashes_are_carried_along(tmp_path: Path) -> None:
    params = random_params(SMALL)
    meta = {
        "stage": "pruned",
        "dataset": "digits",
        "data_dir": "",
        "config_text": "x = 1\n",
        "config_hash": "h",
    }
    meta |= {"teacher_hash": "of the teacher", "calibration_hash": "of the images"}
    checkpoint.save_model(tmp_path / "pruned", checkpoint.Card(SMALL, DIGITS_SPEC, DIGITS, meta), params)
    _export(tmp_path / "pruned", tmp_path / "models" / "pruned" / "2")
    provenance = read_bundle(tmp_path / "models" / "pruned" / "2").manifest.provenance
    assert (provenance.stage, provenance.teacher_hash, provenance.calibration_hash) == (
        "pruned",
        "of the teacher",
        "of the images",
    )


def test_an_int8_bundle_names_the_images_that_gave_its_ranges(int8: Exported) -> None:
    images = open_dataset("digits").train.images[:100]
    prepared = preprocess.normalise(
        np.stack([preprocess.fit(image, DIGITS_SPEC) for image in images]), DIGITS_SPEC
    )
    wanted = hashlib.sha256(prepared.tobytes()).hexdigest()
    assert read_bundle(int8[0]).manifest.provenance.calibration_hash == wanted


def _files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("output", "more", "message"),
    [
        ("small/one", (), "give REPO/NAME/VERSION with a version of 1, 2, 3"),
        ("small/0", (), "give REPO/NAME/VERSION"),
        ("small/2", ("--precision=int4",), "precision"),
        ("small/2", ("--min_agreement=1.01",), "min_agreement"),
        ("small/2", ("--min_top1=1.01",), "min_top1"),
        (
            "small/2",
            ("--precision=int8_weights", "--min_top1=1"),
            "and 100.00% must remain; nothing was written",
        ),
        ("small/2", ("--threads=0",), "threads"),
        ("small/2", ("--precision=int8", "--calibration_examples=1258"), "above the 1257 training images"),
        ("small/2", ("--data_dir=/nowhere",), "the digits come with the installation"),
        ("small/2", ("--shape=8",), "shape"),
        ("small/2", ("stray",), "unexpected argument 'stray'"),
    ],
)
def test_a_bad_call_ends_with_one_line_and_code_2_and_nothing_is_written(
    teacher: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    output: str,
    more: tuple[str, ...],
    message: str,
) -> None:
    arguments = [f"--checkpoint={teacher}", f"--output={tmp_path / output}", *more]
    _refused(arguments, message, capsys)
    assert list(tmp_path.iterdir()) == []


def _refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        run_command(main, arguments)
    said = capsys.readouterr()
    assert end.value.code == 2
    assert said.out == ""
    *bars, error = said.err.splitlines()
    assert all(re.match(f"({'|'.join((*BARS, WORST))}) [█·]+ ", bar) for bar in bars)
    assert error.startswith("error: ")
    assert message in error


@pytest.mark.parametrize(("flags", "needs"), [("fpu avx2", []), ("fpu avx2 avx_vnni", list(cpu.INT8))])
def test_int8_asks_of_a_cpu_only_what_the_one_that_exported_it_has(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str, needs: list[str]
) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
    monkeypatch.setattr(cpu, "_CPU_INFO", tmp_path / "cpuinfo")
    target = tmp_path / "models" / "small" / "1"
    # Signed codes may be computed wrongly by this very CPU: what is asked here is the manifest.
    _export(teacher, target, "--precision=int8", "--calibration_examples=100", "--min_agreement=0.0")
    assert list(read_bundle(target).manifest.models[0].required_cpu_features) == needs


def test_auto_ships_one_of_the_precisions_and_says_what_each_took(teacher: Path, tmp_path: Path) -> None:
    target = tmp_path / "models" / "small" / "1"
    said = _export(teacher, target, "--precision=auto", "--min_agreement=0.8", "--batch=3")
    assert said["tried"].keys() == job.PRECISIONS.keys()
    assert read_bundle(target).model_file()[0].precision == said["precision"]
    taken = {name: found["p50_ms"] for name, found in said["tried"].items()}
    shipped, least = (
        said["tried"][said["precision"]],
        min(said["tried"].values(), key=lambda one: one["p50_ms"]),
    )
    assert shipped["p50_ms"] <= least["p50_ms"] * (1 + max(0.03, least["spread"])), taken


def test_auto_ships_fp32_where_nothing_else_answers_as_the_live_model_does(tmp_path: Path) -> None:
    save_digits(tmp_path / "undecided", params=_undecided())
    said = _export(
        tmp_path / "undecided", tmp_path / "models" / "m" / "1", "--precision=auto", "--min_agreement=1"
    )
    assert said["precision"] == "fp32"
    assert "asked is 100.0%" in said["tried"]["int8"]["refused"]


def test_an_output_that_exists_is_refused_and_kept(
    teacher: Path, fp32: Exported, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = _files(repository)
    _refused(
        [f"--checkpoint={teacher}", f"--output={fp32[0]}"], "exists already; give the next version", capsys
    )
    assert _files(repository) == before


def test_an_unknown_checkpoint_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _refused(
        [f"--checkpoint={tmp_path / 'no'}", f"--output={tmp_path / 'm' / '1'}"], "no checkpoint under", capsys
    )
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_of_other_classes_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_digits(tmp_path / "pets", dataclasses.replace(SMALL, num_classes=2), labels=("cat", "dog"))
    output = tmp_path / "models" / "pets" / "1"
    _refused([f"--checkpoint={tmp_path / 'pets'}", f"--output={output}"], "the model knows cat, dog", capsys)
    assert not (tmp_path / "models").exists()


def _undecided() -> Params:
    """Parameters of a model that says the same of all classes but for what sets one image apart, so that eight bits decide."""
    params, images = random_params(SMALL), open_dataset("digits").train.images[:512]
    params["head"]["bias"] -= logits(SMALL, params, preprocess.normalise(images, DIGITS_SPEC)).mean(axis=0)
    return params


def test_int8_that_answers_too_often_otherwise_is_refused_with_both_shares(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_digits(tmp_path / "undecided", params=_undecided())
    output = tmp_path / "models" / "undecided" / "1"
    arguments = [
        f"--checkpoint={tmp_path / 'undecided'}",
        f"--output={output}",
        "--precision=int8",
        "--min_agreement=1",
    ]
    _refused(arguments, "asked is 100.0%; nothing was written", capsys)
    assert not (tmp_path / "models").exists()


def test_fp32_that_does_not_say_the_same_is_refused(
    teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write = onnx_writer.write_onnx

    def wrong(model: description.ViT, params: Params) -> Any:
        return write(dataclasses.replace(model, norm_eps=1e-2), params)

    monkeypatch.setattr(onnx_writer, "write_onnx", wrong)
    output = tmp_path / "models" / "small" / "1"
    _refused(
        [f"--checkpoint={teacher}", f"--output={output}"],
        "the exported model differs from the live one by",
        capsys,
    )
    assert list(tmp_path.iterdir()) == []
