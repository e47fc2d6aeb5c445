"""The configuration of a compression: what may remain of the teacher, and how it is cut and repaired."""

import dataclasses

from trainer.config.fields import Problems

SCORES = ("fisher", "taylor")


@dataclasses.dataclass(frozen=True)
class Budget:
    """At most so much may remain; a value of at most 1 is a fraction of the teacher's, 0 is not limited."""

    params: float
    macs: float


@dataclasses.dataclass(frozen=True)
class Shape:
    """What must remain in all; 0 keeps the teacher's."""

    num_layers: int
    num_heads: int
    mlp_dim: int


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Training images, used without their labels, that scores and repair are computed from."""

    examples: int
    batch: int


@dataclasses.dataclass(frozen=True)
class Compression:
    """One compression, to a budget or to a stated shape."""

    seed: int
    dataset: str
    data_dir: str
    budget: Budget
    shape: Shape
    score: str
    calibration: Calibration
    ridge: float  # damping of least squares, as a fraction of the mean variance
    round_mlp: int  # neurons are cut to a multiple of this
    round_head_dim: int  # dims per head are cut to a multiple of this

    def problems(self) -> list[str]:
        """Everything that is wrong, a phrase each; empty for a configuration that can run."""
        found = Problems()
        goals = {f"budget.{name}": value for name, value in dataclasses.asdict(self.budget).items()}
        sizes = {f"shape.{name}": value for name, value in dataclasses.asdict(self.shape).items()}
        for name, value in {**goals, **sizes}.items():
            found.check(value >= 0, f"{name}={value} must not be negative")
        stated = [name for name, value in goals.items() if value] + (["shape"] if any(sizes.values()) else [])
        listed = " and ".join(stated) if stated else "none"
        found.check(len(stated) == 1, f"exactly one of {', '.join(goals)} or shape.* must be set, not {listed}")
        found.check(self.score in SCORES, f"score={self.score!r} must be one of {', '.join(SCORES)}")
        found.check(self.ridge > 0, f"ridge={self.ridge} must be above 0")
        counts = {f"calibration.{name}": value for name, value in dataclasses.asdict(self.calibration).items()}
        counts |= {"round_mlp": self.round_mlp, "round_head_dim": self.round_head_dim}
        for name, value in counts.items():
            found.check(value >= 1, f"{name}={value} must be at least 1")
        found.check(self.seed >= 0, f"seed={self.seed} must not be negative")
        return found.found
