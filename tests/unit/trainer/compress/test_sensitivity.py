"""The losses of a search for people: every measured cut, in a table and as a picture."""

import json
from pathlib import Path

from trainer.compress import losses
from trainer.compress.losses import Curve
from trainer.compress.sensitivity import Sensitivity

LOSSES = [
    {
        "heads": Curve((0, 1, 2), (0.5, 0.25, 0.0)),
        "query_key": Curve((4, 8), (0.125, 0.0)),
        "value": Curve((4, 8), (0.0, 0.0)),
        "mlp": Curve((0, 8, 16), (1.0, 0.0625, 0.0)),
    },
    {"mlp": Curve((0, 8, 16), (2.0, 0.03125, 0.0)), "block": Curve((0, 1), (2.5, 0.0))},
    {"stem": Curve((8, 32), (0.5, 0.0))},
    {"width": Curve((4, 8, 16), (0.75, 0.25, 0.0))},
]


def test_losses_survive_json() -> None:
    assert losses.read(json.loads(json.dumps(losses.plain(LOSSES)))) == LOSSES


def test_every_measured_cut_is_told_and_the_whole_is_not() -> None:
    told = Sensitivity(LOSSES).to_json()
    assert len(told) == 12
    assert [(one["layer"], one["kind"]) for one in told[8:]] == [
        (1, "block"),
        (0, "stem"),
        (0, "width"),
        (0, "width"),
    ]
    assert {"layer": 1, "kind": "mlp", "kept": 8, "of": 16, "divergence": 0.03125} in told
    assert all(one["kept"] < one["of"] for one in told)


def test_the_plot_is_a_picture_and_a_loss_of_nothing_does_not_break_its_axis(tmp_path: Path) -> None:
    Sensitivity(LOSSES).plot(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_where_no_losses_were_measured_there_is_no_sensitivity(tmp_path: Path) -> None:
    assert Sensitivity.of(tmp_path / "losses.json") is None
    (tmp_path / "losses.json").write_text(json.dumps({"hashes": {}, "losses": losses.plain(LOSSES)}))
    assert Sensitivity.of(tmp_path / "losses.json") == Sensitivity(LOSSES)
