"""The main job as a newcomer runs it, and what it promises."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import scipy.special

from serving import preprocess
from serving.bundle import read_bundle
from serving.client import VisionClient
from serving.client.vision import Label
from tests.support import servers
from tools import report

pytestmark = pytest.mark.slow

_PATIENCE_S = 900.0  # it takes under three minutes on two free cores; a busy machine is no defect
KEYS = {"stage", "model", "params", "mib", "macs", "images_per_s", "p50_ms", "top1", "precision"}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quickstart")
    ended = servers.run("tools.quickstart", f"--workdir={folder}", patience_s=_PATIENCE_S)
    assert ended.code == 0, ended.errors
    return folder


@pytest.fixture(scope="module")
def rows(workdir: Path) -> dict[str, dict[str, float]]:
    return {row["stage"]: row for row in json.loads((workdir / "results.json").read_text())}


def test_results_have_a_row_per_stage_with_the_promised_keys(rows: dict[str, dict[str, float]]) -> None:
    assert list(rows) == ["teacher", "pruned", "distilled", "distilled int8", "scratch"]
    assert all(row.keys() >= KEYS for row in rows.values())


def test_the_student_is_small_and_as_good_as_promised(rows: dict[str, dict[str, float]]) -> None:
    teacher, student = rows["teacher"], rows["distilled"]
    assert student["params"] <= 0.3 * teacher["params"]
    assert student["top1"] >= teacher["top1"] - 0.02


def test_mib_is_the_size_of_the_model_file_that_was_served(
    workdir: Path, rows: dict[str, dict[str, float]]
) -> None:
    for row in rows.values():
        bundle = read_bundle(workdir / "models" / str(row["model"]) / "1")
        file, path = bundle.model_file()
        assert file.precision == row["precision"]
        assert row["mib"] == pytest.approx(path.stat().st_size / 2**20)


def test_report_and_plots_are_written(workdir: Path) -> None:
    text = (workdir / "report.md").read_text()
    assert "scratch" in text
    for plot in ("accuracy_against_size.png", "accuracy_against_speed.png"):
        assert plot in text
        assert (workdir / plot).read_bytes().startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def client(workdir: Path) -> Iterator[VisionClient]:
    with servers.serving(workdir / "models") as server, VisionClient(server.target) as client:
        yield client


def test_tensors_through_model_infer_give_the_answers_of_png_bytes_through_classify(
    workdir: Path, rows: dict[str, dict[str, str]], client: VisionClient
) -> None:
    """For every bundle, and all ten probabilities of each image, not only its first label."""
    images, _ = report.test_images("digits", "")
    images = images[:96]
    for name in (row["model"] for row in rows.values()):
        spec = read_bundle(workdir / "models" / name / "1").preprocess
        answers = client.classify(images, model=name, top_k=10)
        classified = np.array([[one.probability for one in sorted(row, key=_index)] for row in answers])
        # A request of tensors is one batch, of at most 32.
        prepared = np.split(preprocess.prepare(images, spec), 3)
        logits = np.concatenate([client.infer(name, tensors) for tensors in prepared])
        inferred = scipy.special.softmax(logits, axis=-1)
        assert classified.shape == (96, 10), name
        # The same tensors in the same engine: float32 differs by where a sum of the softmax is rounded.
        np.testing.assert_allclose(classified, inferred, atol=1e-5, err_msg=name)
        assert [row[0].index for row in answers] == inferred.argmax(axis=-1).tolist(), name


def _index(label: Label) -> int:
    return label.index


def test_run_again_it_repeats_no_step(workdir: Path) -> None:
    ended = servers.run("tools.quickstart", f"--workdir={workdir}")
    assert ended.code == 0, ended.errors
    assert ended.errors.count("done before") == 9
