"""The configuration of a compression: its goals, and what is refused."""

import pytest

from serving.command import UserError
from trainer import config


def test_a_goal_on_the_command_line_replaces_that_of_the_recipe() -> None:
    to_macs = config.compression("configs/compress.py", [("budget.macs", "0.5")])
    assert (to_macs.budget.params, to_macs.budget.macs) == (0, 0.5)
    to_shape = config.compression("configs/compress.py", [("shape.num_heads", "2")])
    assert (to_shape.budget.params, to_shape.shape.num_heads) == (0, 2)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"budget.params": "0.3", "budget.macs": "0.3"}, "not budget.params and budget.macs"),
        ({"budget.params": "0.3", "shape.mlp_dim": "8"}, r"not budget.params and shape\.\*"),
        ({"budget.params": "0"}, "must be set, not none"),
        ({"until": "cut", "distil.rungs": "2"}, "until=cut makes no training step, distil.rungs=2"),
        ({"until": "cut", "halving.candidates": "3"}, "halving.candidates=3 ask for some"),
        ({"search": "uniform", "halving.candidates": "3"}, "a uniform cut has one candidate: set it to 0"),
        ({"shape.num_heads": "2", "halving.candidates": "3"}, "a stated shape or a uniform cut has one"),
        ({"distil.rungs": "0", "distil.total_steps": "0"}, "distil.total_steps=0 does not; set rungs=1, or"),
        (
            {"calibration.labelled": "True", "score": "obs"},
            "labelled is for score=fisher or taylor; obs looks",
        ),
        ({"budget.mib": "1", "budget.latency_p50_ms": "2"}, "not budget.mib and budget.latency_p50_ms"),
        ({"budget.latency_p50_ms": "0"}, "must be set, not none"),
        ({"budget.latency_p50_ms": "-1"}, "budget.latency_p50_ms=-1.0 must be 0 or above"),
        ({"budget.precision": "fp8"}, "budget.precision='fp8' must be one of fp32, int8"),
        ({"budget.batch": "0"}, "budget.batch=0 must be at least 1"),
        ({"shape.num_layers": "0"}, "shape.num_layers=0, shape.hidden_size=0"),
        (
            {"budget.params": "1.5"},
            r"budget.params=1.5 must be a fraction in \(0, 1\], a whole number above 1",
        ),
        ({"budget.params": "-3"}, "budget.params=-3.0 must be a fraction"),
        ({"budget.macs": "nan"}, "budget.macs=nan must be a fraction"),
        ({"shape.num_layers": "-1"}, "shape.num_layers=-1 must be 0 or above"),
        ({"score": "magic"}, "score='magic' must be one of fisher"),
        ({"calibration.examples": "0"}, "calibration.examples=0 must be at least 1"),
        (
            {"shape.target": "Ti_16", "shape.mlp_dim": "8"},
            "shape.target=Ti_16 states every size; leave out shape.mlp_dim=8",
        ),
        (
            {"budget.mib": "1", "export.precision": "int8"},
            r"budget\.mib limits a file of budget\.precision=fp32, and export\.precision=int8 ships another",
        ),
        ({"budget.mib": "1", "export.precision": "auto"}, "export.precision=auto ships another"),
        (
            {"budget.latency_p50_ms": "1", "budget.profile": "d.json", "export.precision": "auto"},
            "budget.latency_p50_ms limits a file of budget.precision=fp32",
        ),
        ({"budget.mib": "1", "distil.qat_steps": "5"}, "distil.qat_steps=5 trains for eight bits"),
        ({"search": "uniform", "merge": "always", "halving.candidates": "0"}, "a uniform cut merges nothing"),
        ({"ridge": "0"}, "ridge=0.0 must be above 0"),
        ({"round_mlp": "0"}, "round_mlp=0 must be at least 1"),
    ],
)
def test_a_compression_that_cannot_run_is_refused(overrides: dict[str, str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        config.compression("configs/compress.py", list(overrides.items()))


def test_saying_how_a_budget_is_measured_leaves_the_recipes_goal() -> None:
    budget = config.compression("configs/compress.py", [("budget.threads", "1")]).budget
    assert (budget.params, budget.threads) == (0.25, 1)


def test_a_budget_may_be_a_whole_number_of_parameters() -> None:
    assert config.compression("configs/compress.py", [("budget.params", "100000")]).budget.params == 100_000
