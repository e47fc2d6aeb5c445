import json
from pathlib import Path

import pytest

from tests.support.small_models import SMALL, random_params, smooth_images
from trainer.compress import scores, sensitivity
from trainer.compress.allocate import Rounding
from trainer.compress.repair import Repair
from trainer.compress.search import Teacher


def test_keeping_all_loses_next_to_nothing_less_loses_more_and_finished_layers_are_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params, images = random_params(SMALL), smooth_images(SMALL, 96)
    teacher = Teacher(SMALL, params, images, Repair(1e-6, 48))
    found = scores.score(SMALL, params, images, "variance", 0, 48)
    arguments = (teacher, found, Rounding(4, 2), (0.25, 1.0), 96, tmp_path / "sensitivity.json")
    first = sensitivity.sensitivity(*arguments)
    kinds = {point.kind for point in first.points}
    assert kinds == {"heads", "query_key", "value", "mlp", "block", "width"}
    by_cut = {(p.layer, p.kind, p.kept == p.of): p.divergence for p in first.points}
    for (layer, kind, whole), loss in by_cut.items():
        if whole:
            # float32 rounding and the ridge's damping; a real cut of these models costs far more.
            assert loss < 1e-3
            assert loss < by_cut[layer, kind, False]
    monkeypatch.setattr(sensitivity, "_refit", None)
    assert sensitivity.sensitivity(*arguments) == first
    assert (
        len(json.loads(json.dumps(first.to_json()))) == len(first.points) == first.markdown().count("\n") - 2
    )
    first.plot(tmp_path / "sensitivity.png")
    assert (tmp_path / "sensitivity.png").read_bytes().startswith(b"\x89PNG")
