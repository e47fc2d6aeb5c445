"""The configuration of a compression: what may remain of the teacher, and how it is cut and repaired."""

import dataclasses

from trainer.config.fields import Problems

SCORES = ("fisher", "taylor")


@dataclasses.dataclass(frozen=True)
class Budget:
    """At most so much may remain: a value in (0, 1] is a fraction of the teacher's, a whole one above 1 absolute, 0 no limit."""

    params: float
    macs: float


@dataclasses.dataclass(frozen=True)
class Shape:
    """What must remain: blocks, heads in each, neurons in each; 0 keeps the teacher's."""

    num_layers: int
    num_heads: int
    mlp_dim: int


@dataclasses.dataclass(frozen=True)
class Calibration:
    """How many training images scores and repair are computed from, and how many of them at a time."""

    examples: int
    batch: int


@dataclasses.dataclass(frozen=True)
class Compression:
    """One compression, to a budget or to a stated shape.

    Raises:
      ConfigError: on construction, naming everything that is wrong.
    """

    seed: int
    dataset: str
    data_dir: str  # empty: where the data set is known to be
    budget: Budget
    shape: Shape
    score: str
    calibration: Calibration
    ridge: float  # damping of least squares, as a fraction of the mean variance
    round_mlp: int  # neurons are cut to a multiple of this
    round_head_dim: int  # dims per head are cut to a multiple of this

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
        limits = {f"budget.{name}": value for name, value in dataclasses.asdict(self.budget).items()}
        sizes = {f"shape.{name}": value for name, value in dataclasses.asdict(self.shape).items()}
        for name, value in limits.items():
            fine = 0 <= value <= 1 or (value > 1 and value.is_integer())
            found.check(
                fine, f"{name}={value} must be a fraction in (0, 1], a whole number above 1, or 0: no limit"
            )
        found.check_at_least(0, **sizes)
        stated = [name for name, value in limits.items() if value] + ["shape.*"] * any(sizes.values())
        listed = " and ".join(stated) or "none"
        found.check(
            len(stated) == 1, f"exactly one of {', '.join(limits)} or shape.* must be set, not {listed}"
        )
