"""The configuration of a compression: what may remain of the teacher, how it is cut, repaired, distilled and shipped."""

import dataclasses
from typing import Annotated, Any

from trainer.config.data import Data
from trainer.config.experiment import Experiment
from trainer.config.fields import ConfigError, Problems
from trainer.config.learning import Learning
from trainer.precisions import AUTO, PRECISIONS

SCORES = ("fisher", "taylor", "act", "variance", "obs")
SEARCHES = ("budget", "uniform")
MERGES = ("auto", "always", "never")
SIZES = ("params", "macs")  # limits that may be fractions
ACCURACIES = ("min_top1", "max_drop")  # least accuracy; what it costs is made small
LIMITS = (
    *SIZES,
    "mib",
    "latency_p50_ms",
    "latency_p99_ms",
    *ACCURACIES,
)  # of a budget; its other fields say how
ENDS = ("cut", "distil", "export")  # where the command may end


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
    """One limit (0: none), and under what it holds. Parameters and MACs in (0, 1] are fractions of the teacher's."""

    params: Annotated[
        float,
        "largest number of parameters: a fraction of the teacher's in (0, 1], a count above 1, 0 no limit",
    ] = 0.0
    macs: Annotated[float, "multiply-accumulates, likewise"] = 0.0
    mib: Annotated[float, "largest exported file, MiB"] = 0.0
    latency_p50_ms: Annotated[
        float,
        "greatest time of a call on the serving runtime, ms: the median of the five least disturbed rounds",
    ] = 0.0
    latency_p99_ms: Annotated[float, "greatest 99th percentile of it, ms"] = 0.0
    min_top1: Annotated[float, "least validation top-1 that must remain, a fraction; MACs are made few"] = 0.0
    max_drop: Annotated[
        float, "likewise, as the most that may be lost of the teacher's: 0.005 is half a point"
    ] = 0.0
    batch: Annotated[int, "images in the call whose latency is limited"] = 1
    threads: Annotated[int, "threads of that call; 0: all cores"] = 0
    precision: Annotated[str, "fp32, int8 or int8_weights: of the file that is limited"] = "fp32"
    timing_seconds: Annotated[
        float,
        "how long latencies are measured at a time: long enough to meet moments when nobody else uses the machine",
    ] = 30.0
    profile: Annotated[
        str, "file that python -m serving.timing wrote: the latency is that device's; empty: this machine's"
    ] = ""

    @property
    def timed(self) -> bool:
        """Whether a latency is limited."""
        return bool(self.latency_p50_ms or self.latency_p99_ms)

    @property
    def of_a_file(self) -> list[str]:
        """The limits that are set on a file or its time, which hold for `precision`."""
        return [name for name in ("mib", "latency_p50_ms", "latency_p99_ms") if getattr(self, name)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """What must remain: the sizes of a named model, or sizes one by one; 0 keeps the teacher's."""

    target: Annotated[
        str, "a model by name, Ti_16 or any of python -m tools.models; empty: the sizes below"
    ] = ""
    num_layers: Annotated[int, "blocks that remain; 0 keeps the teacher's"] = 0
    hidden_size: Annotated[int, "channels of the residual stream; 0 keeps the teacher's"] = 0
    num_heads: Annotated[int, "heads in each block; 0 keeps the teacher's"] = 0
    qk_dim: Annotated[int, "query and key dims of each head; 0 keeps the teacher's"] = 0
    v_dim: Annotated[int, "value dims of each head; 0 keeps the teacher's"] = 0
    mlp_dim: Annotated[int, "neurons in each block; 0 keeps the teacher's"] = 0
    stem_groups: Annotated[
        int, "of 32 groups of channels inside each unit of a hybrid's stem; 0 keeps the teacher's"
    ] = 0
    merge: Annotated[int, "pairs of tokens that each block from the third on makes one of; 0: none more"] = 0

    @property
    def stated(self) -> bool:
        """Whether any size was."""
        return any(dataclasses.astuple(self))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibration:
    """What scores, search and repair look at: repair at all of the images, the others at as many of them as they need."""

    examples: Annotated[int, "training images"] = 1024
    batch: Annotated[int, "images at a time"] = 64
    labelled: Annotated[
        bool, "whether fisher and taylor ask for the true labels and not for what the teacher says"
    ] = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distil(Learning):
    """How the cut model is trained towards the teacher: as in a training, by turns. total_steps=0 leaves it out."""

    rungs: Annotated[
        int, "cut and distil in so many turns; 0: as many as keep each cut to a third of the cost, 1: one"
    ] = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Halving:
    """Successive halving: which candidate is best after distillation is not always the one that is best before."""

    candidates: Annotated[
        int, "best ones that are distilled for a while before one is chosen; 0: the first is"
    ] = 0
    steps: Annotated[int, "of the first short distillation; each round keeps half and doubles them"] = 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export:
    """The bundle that is shipped: WORKDIR/models/NAME/1."""

    name: Annotated[str, "of the bundle: WORKDIR/models/NAME/1"] = "student"
    precision: Annotated[
        str,
        "fp32, int8, int8_weights or auto (the fastest that holds); empty: budget.precision where it limits, else auto",
    ] = ""
    calibration_examples: Annotated[int, "training images for int8 ranges"] = 512
    min_agreement: Annotated[
        float, "less than fp32 is refused when it shares fewer first labels with the live model"
    ] = 0.98


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compression(Data):
    """One compression, to a budget or to a stated shape. The data set calibrates and judges.

    Raises:
      ConfigError: on construction, naming everything that is wrong.
    """

    seed: Annotated[int, "of the choice of calibration images, and of what is drawn for scores"] = 0
    budget: Budget
    shape: Shape = Shape()
    search: Annotated[
        str, "how a budget is spent: budget (width, depth and every layer by losses) or uniform (all alike)"
    ] = "budget"
    sensitivity: Annotated[
        bool,
        "whether the report tells what each layer bears where the search does not ask, and what whole blocks and the stream do: "
        "minutes, of a large model",
    ] = True
    merge: Annotated[
        str,
        "whether a budget may be met by merging tokens too: auto (where there are at least 100), always or never",
    ] = "auto"
    score: Annotated[
        str, "fisher, taylor, act, variance or obs: ranks units; a budget search spares neurons with refit"
    ] = "fisher"
    calibration: Calibration = Calibration()
    ridge: Annotated[float, "damping of least squares, as a fraction of the mean variance"] = 0.001
    refits: Annotated[
        int,
        "times that what a cut branch reads by is fitted by turns with its output: most of a cut's time; 0: outputs alone",
    ] = 1
    round_mlp: Annotated[int, "neurons are cut to a multiple of this"] = 8
    round_head_dim: Annotated[int, "dims per head are cut to a multiple of this"] = 4
    round_width: Annotated[int, "channels of the residual stream are cut to a multiple of this"] = 16
    halving: Halving = Halving()
    distil: Distil
    export: Export = Export()
    until: Annotated[str, "cut, distil or export: the last thing to do"] = "export"

    def __post_init__(self) -> None:
        found = Problems()
        self.check_data(found)
        self._check_goal(found)
        found.check(self.score in SCORES, f"score={self.score!r} must be one of {', '.join(SCORES)}")
        found.check(self.search in SEARCHES, f"search={self.search!r} must be one of {', '.join(SEARCHES)}")
        found.check(self.merge in MERGES, f"merge={self.merge!r} must be one of {', '.join(MERGES)}")
        found.check_above_0(ridge=self.ridge)
        counts = {f"calibration.{name}": getattr(self.calibration, name) for name in ("examples", "batch")}
        rounding = {f"round_{name}": getattr(self, f"round_{name}") for name in ("mlp", "head_dim", "width")}
        found.check_at_least(1, **rounding, **counts)
        found.check_at_least(0, refits=self.refits)
        found.check(0 <= self.seed < 2**32, f"seed={self.seed} must be in [0, 2**32)")
        self._check_rest(found)
        found.refuse()

    def distillation(
        self, student: str, teacher: str, image_size: int, total_steps: int, qat_steps: int = 0
    ) -> Experiment:
        """The training that brings the checkpoint `student` nearer to the checkpoint `teacher` in `total_steps`, the last
        `qat_steps` of them rounded to 8 bits.

        Raises:
          ConfigError: naming everything that is wrong with section `distil`.
        """
        given: dict[str, Any] = dataclasses.asdict(self.distil)
        del given["rungs"]
        whole, warmup = self.distil.total_steps, self.distil.warmup_steps
        given |= {"total_steps": total_steps, "qat_steps": qat_steps}
        given["warmup_steps"] = warmup * total_steps // whole if whole else min(warmup, total_steps - 1)
        return Experiment(
            **given,
            seed=self.seed,
            dataset=self.dataset,
            data_dir=self.data_dir,
            bad_images=self.bad_images,
            image_size=image_size,
            pretrained=student,
            teacher_weights=teacher,
        )

    @property
    def searched(self) -> bool:
        """Whether a budget is spent by measured losses, and not alike everywhere or as a shape states."""
        return self.search == "budget" and not self.shape.stated

    @property
    def shipped_precision(self) -> str:
        """The precision that the exporter is asked for: a limit on file or time is on a file of its own precision."""
        return self.export.precision or (self.budget.precision if self.budget.of_a_file else AUTO)

    def _check_rest(self, found: Problems) -> None:
        distil, halving = self.distil, self.halving
        found.check(self.until in ENDS, f"until={self.until!r} must be one of {', '.join(ENDS)}")
        counts = {"distil.rungs": distil.rungs, "distil.total_steps": distil.total_steps}
        found.check_at_least(0, **counts, **{"halving.candidates": halving.candidates})
        found.check_at_least(
            1,
            **{
                "halving.steps": halving.steps,
                "export.calibration_examples": self.export.calibration_examples,
            },
        )
        try:
            # Trained or not: what is wrong shows now, and not when the cut is done.
            steps = distil.total_steps or distil.warmup_steps + 1
            self.distillation("student", "teacher", 1, steps, distil.qat_steps)
        except ConfigError as error:
            for problem in error.problems:
                found.check(False, f"distil.{problem}")
        found.check(
            not self.calibration.labelled or self.score in ("fisher", "taylor"),
            f"calibration.labelled is for score=fisher or taylor; {self.score} looks at no label",
        )
        found.check(
            self.until != "cut" or (distil.rungs == 1 and halving.candidates <= 1),
            f"until=cut makes no training step, distil.rungs={distil.rungs} and halving.candidates={halving.candidates} ask for "
            "some; set them to 1 and 0, or until=distil",
        )
        turns = {"distil.rungs": (distil.rungs, 1), "halving.candidates": (halving.candidates, 0)}
        for name, (value, alone) in turns.items():
            found.check(
                not distil.feature_weight or value == alone,
                f"distil.feature_weight={distil.feature_weight:g} matches blocks of one cut with those of its teacher; "
                f"set {name}={alone}, not {value}, or distil.feature_weight=0",
            )
        found.check(
            halving.candidates <= 1 or self.searched,
            f"halving.candidates={halving.candidates} is for search=budget with a budget; a stated shape or a uniform cut has one "
            "candidate: set it to 0",
        )
        found.check(
            distil.rungs == 1 or distil.total_steps > 0 or self.until == "cut",
            f"distil.rungs={distil.rungs} distils between cuts, distil.total_steps=0 does not; set rungs=1, or steps",
        )
        laddered = distil.rungs != 1 and self.shape.stated
        found.check(not laddered, f"distil.rungs={distil.rungs} is for a budget; with shape.* set it to 1")
        name, share = self.export.name, self.export.min_agreement
        found.check(
            bool(name) and "/" not in name and not name.startswith("."),
            f"export.name={name!r} must be the name of a folder",
        )
        found.check(0 <= share <= 1, f"export.min_agreement={share} must be in [0, 1]")
        found.check(
            self.export.precision in ("", *PRECISIONS, AUTO),
            f"export.precision={self.export.precision!r} must be empty or one of {', '.join((*PRECISIONS, AUTO))}",
        )
        self._check_precision(found)
        found.check(
            self.merge != "always" or self.searched,
            f"merge={self.merge} is for search=budget with a budget; a stated shape has shape.merge, "
            "a uniform cut merges nothing: set merge=never",
        )

    def _check_precision(self, found: Problems) -> None:
        """A limit on file or time is of one precision, which the shipped file must have."""
        asked, precision = self.export.precision, self.budget.precision
        limited = self.budget.of_a_file
        fine = ("", precision) if self.budget.mib or self.budget.profile else ("", precision, AUTO)
        found.check(
            not limited or asked in fine,
            f"budget.{' and '.join(limited)} limits a file of budget.precision={precision}, and export.precision={asked} ships "
            "another; leave export.precision empty, or set both alike",
        )
        found.check(
            not self.distil.qat_steps or self.shipped_precision != "fp32" or self.until != "export",
            f"distil.qat_steps={self.distil.qat_steps} trains for eight bits, and what is shipped is fp32: set it to 0, or "
            f"{'budget' if limited else 'export'}.precision=int8",
        )

    def _check_goal(self, found: Problems) -> None:
        limits = {f"budget.{name}": getattr(self.budget, name) for name in LIMITS}
        shape = dataclasses.asdict(self.shape)
        target = shape.pop("target")
        sizes = {f"shape.{name}": value for name, value in shape.items()}
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
            **{f"budget.{name}": getattr(self.budget, name) for name in ("threads", "timing_seconds")},
        )
        for name in ACCURACIES:
            value = getattr(self.budget, name)
            found.check(0 <= value < 1, f"budget.{name}={value} must be a fraction in (0, 1), or 0: no limit")
        found.check_at_least(1, **{"budget.batch": self.budget.batch})
        found.check(
            not self.budget.profile or self.budget.timed,
            f"budget.profile={self.budget.profile} is for budget.latency_p50_ms or latency_p99_ms; leave it out",
        )
        found.check(
            self.budget.precision in PRECISIONS,
            f"budget.precision={self.budget.precision!r} must be one of {', '.join(PRECISIONS)}",
        )
        found.check_at_least(0, **sizes)
        both = [f"{name}={value}" for name, value in sizes.items() if value and name != "shape.merge"]
        found.check(
            not (target and both),
            f"shape.target={target} states every size; leave out {', '.join(both)}, or the target",
        )
        any_size = bool(target) or any(sizes.values())
        stated = [name for name, value in limits.items() if value] + ["shape.*"] * any_size
        zeros = ", ".join(f"{name}=0" for name in (*limits, *sizes))
        listed = " and ".join(stated) or f"none ({zeros}: no limit, and what the teacher has)"
        found.check(
            len(stated) == 1, f"exactly one of {', '.join(limits)} or shape.* must be set, not {listed}"
        )
