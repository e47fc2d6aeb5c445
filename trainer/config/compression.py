"""The configuration of a compression: what may remain of the teacher, and how it is cut and repaired."""

import dataclasses
from typing import Annotated

from trainer.config.fields import Problems

SCORES = ("fisher", "taylor", "act", "variance", "obs")
PRECISIONS = ("fp32", "int8")
SIZES = ("params", "macs")  # limits that may be fractions
LIMITS = (*SIZES, "mib", "latency_p50_ms", "latency_p99_ms")  # of a budget; its other fields say how


@dataclasses.dataclass(frozen=True)
class Budget:
    """One limit (0: none), and under what it holds. Parameters and MACs in (0, 1] are fractions of the teacher's."""

    params: Annotated[
        float,
        "largest number of parameters: a fraction of the teacher's in (0, 1], a count above 1, 0 no limit",
    ]
    macs: Annotated[float, "multiply-accumulates, likewise"]
    mib: Annotated[float, "largest exported file, MiB"]
    latency_p50_ms: Annotated[float, "greatest median time of a call on the serving runtime, ms"]
    latency_p99_ms: Annotated[float, "greatest 99th percentile of it, ms"]
    batch: Annotated[int, "images in the call whose latency is limited"]
    threads: Annotated[int, "threads of that call; 0: all cores"]
    precision: Annotated[str, "fp32 or int8: of the file that is limited"]


@dataclasses.dataclass(frozen=True)
class Shape:
    """What must remain: blocks, heads in each, neurons in each; 0 keeps the teacher's."""

    num_layers: Annotated[int, "blocks that remain; 0 keeps the teacher's"]
    num_heads: Annotated[int, "heads in each block; 0 keeps the teacher's"]
    mlp_dim: Annotated[int, "neurons in each block; 0 keeps the teacher's"]


@dataclasses.dataclass(frozen=True)
class Calibration:
    """How many training images scores and repair are computed from, and how many of them at a time."""

    examples: Annotated[int, "training images, used without labels"]
    batch: Annotated[int, "images at a time"]


@dataclasses.dataclass(frozen=True)
class Compression:
    """One compression, to a budget or to a stated shape.

    Raises:
      ConfigError: on construction, naming everything that is wrong.
    """

    seed: Annotated[int, "of the choice of calibration images, and of what is drawn for scores"]
    dataset: Annotated[str, "name of the data set that calibrates and judges"]
    data_dir: Annotated[str, "folder of the data set's files; empty: where it is known to be"]
    budget: Budget
    shape: Shape
    score: Annotated[str, "fisher or taylor: how units are ranked"]
    calibration: Calibration
    ridge: Annotated[float, "damping of least squares, as a fraction of the mean variance"]
    round_mlp: Annotated[int, "neurons are cut to a multiple of this"]
    round_head_dim: Annotated[int, "dims per head are cut to a multiple of this"]

    def __post_init__(self) -> None:
        found = Problems()
        self._check_goal(found)
        found.check(self.score in SCORES, f"score={self.score!r} must be one of {', '.join(SCORES)}")
        found.check_above_0(ridge=self.ridge)
        counts = {f"calibration.{name}": n for name, n in dataclasses.asdict(self.calibration).items()}
        found.check_at_least(1, round_mlp=self.round_mlp, round_head_dim=self.round_head_dim, **counts)
        found.check(0 <= self.seed < 2**32, f"seed={self.seed} must be in [0, 2**32)")
        found.refuse()

    def _check_goal(self, found: Problems) -> None:
        limits = {f"budget.{name}": getattr(self.budget, name) for name in LIMITS}
        sizes = {f"shape.{name}": value for name, value in dataclasses.asdict(self.shape).items()}
        for name in SIZES:
            value = getattr(self.budget, name)
            fine = 0 <= value <= 1 or (value > 1 and value.is_integer())
            found.check(
                fine,
                f"budget.{name}={value} must be a fraction in (0, 1], a whole number above 1, or 0: no limit",
            )
        found.check_at_least(
            0,
            **{name: value for name, value in limits.items() if name.endswith(("mib", "_ms"))},
            **{"budget.threads": self.budget.threads},
        )
        found.check_at_least(1, **{"budget.batch": self.budget.batch})
        found.check(
            self.budget.precision in PRECISIONS,
            f"budget.precision={self.budget.precision!r} must be one of {', '.join(PRECISIONS)}",
        )
        found.check_at_least(0, **sizes)
        stated = [name for name, value in limits.items() if value] + ["shape.*"] * any(sizes.values())
        zeros = ", ".join(f"{name}=0" for name in (*limits, *sizes))
        listed = " and ".join(stated) or f"none ({zeros}: no limit, and what the teacher has)"
        found.check(
            len(stated) == 1, f"exactly one of {', '.join(limits)} or shape.* must be set, not {listed}"
        )
