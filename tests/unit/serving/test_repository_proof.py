"""What else stands between a bundle and READY: its first labels on the golden images, and a CPU that says nothing of itself."""

from pathlib import Path
from typing import Any

import pytest

from serving.command import UserError
from serving.repository import Repository
from serving.runtime import cpu
from serving.runtime.base import Array
from tests.support.bundles import logits, rewrite_manifest, write_tiny


class SecondLabelFirst:
    """An engine that exchanges the two largest logits of every image."""

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        answers = logits(inputs["images"])
        for row in answers:
            second, first = row.argsort()[-2:]
            row[[first, second]] = row[[second, first]]
        return {"logits": answers}

    def close(self) -> None:
        pass


class Right:
    """An engine that answers as the bundle says."""

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        return {"logits": logits(inputs["images"])}

    def close(self) -> None:
        pass


def _bundle(repository: Path, **first_model: Any) -> None:
    """A tiny bundle whose first model file says more."""
    rewrite_manifest(write_tiny(repository).path, lambda values: values["models"][0].update(first_model))


def _load(repository: Path, engine: type[Right] | type[SecondLabelFirst]) -> None:
    Repository(repository, lambda *_: engine(), 1).load_all()


def test_other_first_labels_are_refused_even_when_every_logit_is_near_enough(tmp_path: Path) -> None:
    _bundle(tmp_path, tolerance={"max_abs_difference": 1e6, "min_top1_agreement": 0.5})
    with pytest.raises(
        UserError, match=r"first label for 0\.0% of the golden inputs, at least 50\.0% is asked"
    ):
        _load(tmp_path, SecondLabelFirst)


def test_no_agreement_is_asked_of_a_bundle_that_asks_for_none(tmp_path: Path) -> None:
    _bundle(tmp_path, tolerance={"max_abs_difference": 1e6})
    models = Repository(tmp_path, lambda *_: SecondLabelFirst(), 1)
    models.load_all()
    assert [entry.state for entry in models.index()] == ["READY"]


@pytest.mark.parametrize("said", [None, "processor\t: 0\nisa\t\t: rv64\n"], ids=["no file", "no features"])
def test_where_the_system_names_no_features_the_golden_answers_decide_and_a_warning_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, said: str | None
) -> None:
    if said is not None:
        (tmp_path / "cpuinfo").write_text(said)
    monkeypatch.setattr(cpu, "_CPU_INFO", tmp_path / "cpuinfo")
    _bundle(tmp_path / "repository", required_cpu_features=["avx512_vnni"])
    _load(tmp_path / "repository", Right)
    assert "needs a CPU with one of avx512_vnni; this system does not say" in caplog.text


@pytest.mark.parametrize("line", ["flags\t\t: fpu avx2", "Features\t: fp asimd"], ids=["x86", "arm"])
def test_a_cpu_that_names_its_features_and_lacks_those_asked_for_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{line}\n")
    monkeypatch.setattr(cpu, "_CPU_INFO", tmp_path / "cpuinfo")
    _bundle(tmp_path / "repository", required_cpu_features=["avx512_vnni", "asimddp"])
    with pytest.raises(UserError, match="one of avx512_vnni, asimddp, which this one lacks"):
        _load(tmp_path / "repository", Right)
