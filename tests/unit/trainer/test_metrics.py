"""The record of a run: what is written when, and what a restart keeps."""

import json
from pathlib import Path

import jax.numpy as jnp
import pytest

from trainer.metrics import MetricsWriter
from trainer.skips import Skips


def record(workdir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def steps(workdir: Path) -> list[float]:
    return [line["step"] for line in record(workdir)]


def test_an_entry_is_fetched_when_the_next_one_comes(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path, 0, Skips(100, 0, 4))
    writer.queue(1, {"loss": jnp.float32(0.5)})
    assert record(tmp_path) == []
    assert writer.latest == {}
    writer.queue(2, {"loss": jnp.float32(0.25)})
    assert record(tmp_path) == [{"step": 1, "loss": 0.5}]
    assert writer.latest == {"loss": 0.5}


def test_flushing_writes_what_is_pending_once(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path, 0, Skips(100, 0, 4))
    writer.queue(1, {"loss": jnp.float32(0.5)})
    writer.flush()
    writer.flush()
    assert record(tmp_path) == [{"step": 1, "loss": 0.5}]


def test_a_value_written_now_stands_behind_what_was_flushed_before(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path, 0, Skips(100, 0, 4))
    writer.queue(3, {"loss": jnp.float32(0.5)})
    writer.flush()
    writer.write(3, {"validation_top1": 0.75})
    assert record(tmp_path) == [{"step": 3, "loss": 0.5}, {"step": 3, "validation_top1": 0.75}]


def _of_an_earlier_run(workdir: Path) -> None:
    writer = MetricsWriter(workdir, 0, Skips(100, 0, 4))
    for step in range(1, 6):
        writer.write(step, {"loss": 1 / step})


@pytest.mark.parametrize(("start", "kept"), [(0, []), (3, [1, 2, 3]), (5, [1, 2, 3, 4, 5])])
def test_a_restart_drops_the_lines_after_the_step_it_goes_on_from(
    tmp_path: Path, start: int, kept: list[int]
) -> None:
    _of_an_earlier_run(tmp_path)
    before = record(tmp_path)
    MetricsWriter(tmp_path, start, Skips(100, 0, 4))
    assert steps(tmp_path) == kept
    assert record(tmp_path) == before[: len(kept)]


def test_a_line_that_a_kill_cut_short_is_dropped(tmp_path: Path) -> None:
    _of_an_earlier_run(tmp_path)
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text()[:-4])
    MetricsWriter(tmp_path, 5, Skips(100, 0, 4)).write(5, {"loss": 0.5})
    assert steps(tmp_path) == [1, 2, 3, 4, 5]


def test_values_that_are_no_finite_number_are_null(tmp_path: Path) -> None:
    MetricsWriter(tmp_path, 0, Skips(100, 0, 4)).write(
        1, {"loss": float("nan"), "grad_norm": float("inf"), "top1": 0.5}
    )
    assert (
        tmp_path / "metrics.jsonl"
    ).read_text() == '{"step": 1, "loss": null, "grad_norm": null, "top1": 0.5}\n'


@pytest.mark.parametrize(
    "foreign", ["no JSON", '{"step": 2, "lo', "", "[2]", '{"loss": 1}', '{"step": "2"}', "\0"]
)
def test_a_line_that_no_run_has_written_is_left_out_with_its_number(
    foreign: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _of_an_earlier_run(tmp_path)
    path = tmp_path / "metrics.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], foreign, *lines[2:]]) + "\n")
    MetricsWriter(tmp_path, 5, Skips(100, 0, 4))
    assert path.read_text().splitlines() == lines
    (warning,) = caplog.messages
    assert warning.startswith(f"{path}, line 3 is no record of a step and is left out: {foreign!r}")


def test_bytes_that_are_no_text_are_a_foreign_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _of_an_earlier_run(tmp_path)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"\xff\xfe\n" + path.read_bytes())
    MetricsWriter(tmp_path, 5, Skips(100, 0, 4))
    assert steps(tmp_path) == [1, 2, 3, 4, 5]
    assert f"{path}, line 1 is no record" in caplog.text


def test_what_a_restart_kept_is_not_written_again_and_what_it_lacks_is(tmp_path: Path) -> None:
    MetricsWriter(tmp_path, 0, Skips(100, 0, 4)).write(5, {"loss": 0.2})
    MetricsWriter(tmp_path, 5, Skips(100, 0, 4)).write(5, {"validation_top1": 0.5})
    before = record(tmp_path)
    assert before == [{"step": 5, "loss": 0.2}, {"step": 5, "validation_top1": 0.5}]
    MetricsWriter(tmp_path, 5, Skips(100, 0, 4)).write(5, {"validation_top1": 0.5})
    assert record(tmp_path) == before


def test_only_process_0_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jax.process_index", lambda: 1)
    writer = MetricsWriter(tmp_path, 0, Skips(100, 0, 4))
    writer.queue(1, {"loss": jnp.float32(0.5)})
    writer.flush()
    assert list(tmp_path.iterdir()) == []
    assert writer.latest == {"loss": 0.5}
