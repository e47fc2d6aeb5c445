"""The facts of one compression, as one JSON object: all that the report says is in it, and nothing is computed elsewhere."""

import dataclasses
from typing import Any

from trainer import description
from trainer.compress import choosing, least_accuracy, target
from trainer.compress.cells import groups
from trainer.compress.choosing import COSTS, Choice
from trainer.compress.given import Given
from trainer.compress.plan import Plan
from trainer.compress.search import Candidate
from trainer.compress.sensitivity import Sensitivity
from trainer.compress.shipping import Limit
from trainer.compress.size import file_mib
from trainer.compress.validation import Accuracy
from trainer.config.compression import LIMITS
from trainer.description import ViT

Facts = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Record:
    """What was given, tried, chosen and measured.

    `given` is of the first teacher, `cut_from` of what the last cut began with (the same unless there are rungs); `shipped` and
    `limits` are empty where nothing was exported.
    """

    given: Given
    cut_from: Given
    choice: Choice
    chosen: Candidate
    halving: list[Facts]
    rungs: list[Facts]
    top1: dict[str, float]
    remarks: list[str]
    shipped: Facts
    limits: list[Limit]
    sensitivity: Sensitivity | None = None

    def to_json(self) -> Facts:
        """Plain JSON values."""
        candidates = self._candidates()
        return {
            "teacher": self.given.origin.path,
            "dataset": self.given.data.name,
            "asked": self._asked(),
            "within_budget": all(limit.met for limit in self.limits) if self.limits else None,
            "limits": [limit.to_json() for limit in self.limits],
            "sizes": self._sizes(),
            "shape": self._shape(),
            "latency": {name: self.shipped.get(name) for name in ("latency", "teacher_latency", "device")},
            "shipped": {
                name: self.shipped[name] for name in ("bundle", "precision", "why") if name in self.shipped
            },
            "accuracy": self._accuracy(self.top1, len(self.given.data.validation)),
            "tested": self._accuracy(self._tested(), len(self.given.data.test)),
            "cost": self.choice.cost,
            "candidates": candidates,
            "why": self._why(candidates),
            "halving": self._halving(),
            "rungs": self.rungs,
            "plan": _layers(self.chosen.plan, self.cut_from.teacher.model),
            "width": [self._model.width, self.cut_from.teacher.model.width],
            "layers_removed": _removed(self.chosen.plan, self.cut_from.teacher.model),
            "stem": _stem(self.chosen.plan, self.cut_from.teacher.model),
            "budget_search": self.choice.met,
            "sensitivity": None if self.sensitivity is None else self.sensitivity.to_json(),
            "remarks": self.remarks,
        }

    @property
    def _model(self) -> ViT:
        return self.chosen.plan.shape_of(self.cut_from.teacher.model)

    def _asked(self) -> str:
        budget, shape = self.given.config.budget, dataclasses.asdict(self.given.config.shape)
        limits = [f"budget.{name} = {getattr(budget, name):g}" for name in LIMITS if getattr(budget, name)]
        stated = [f"shape.{name} = {value}" for name, value in shape.items() if value]
        if "latency" in limits[0] if limits else False:
            threads = budget.threads or "all"
            limits.append(f"batch {budget.batch}, {threads} threads, {budget.precision}")
        return ", ".join(limits + stated)

    def _sizes(self) -> list[Facts]:
        teacher, asked = self.given.teacher.model, {limit.name: limit.asked for limit in self.limits}
        cost, most = choosing.limit_of(self.given)
        asked |= {name: most for name, one in COSTS.items() if most and one is cost}
        rows = [
            {
                "name": name,
                "unit": "",
                "teacher": one(teacher),
                "asked": asked.get(name),
                "actual": one(self._model),
            }
            for name, one in COSTS.items()
        ]
        if self.shipped:
            mib = file_mib(teacher, "fp32")
            rows.append(
                {
                    "name": "file",
                    "unit": "MiB",
                    "teacher": mib,
                    "asked": asked.get("mib"),
                    "actual": self.shipped["mib"],
                }
            )
        return rows

    def _shape(self) -> Facts:
        """Every size that was stated, where any was: the teacher's, as asked and as it came out."""
        teacher, shape = self.given.teacher.model, self.given.config.shape
        return target.report(teacher, target.asked(shape, teacher), self._model) if shape.stated else {}

    def _accuracy(self, top1s: dict[str, float], count: int) -> list[Facts]:
        return [{"stage": stage, **Accuracy.of(top1, count).to_json()} for stage, top1 in top1s.items()]

    def _tested(self) -> dict[str, float]:
        if not self.shipped:
            return {}
        return {"teacher": self.shipped["teacher_test_top1"], "shipped": self.shipped["test_top1"]}

    def _candidates(self) -> list[Facts]:
        """Every plan that was judged, the cheapest first."""
        teacher = self.cut_from.teacher.model
        made_by = {one.plan: one.made_by for one in self.choice.candidates}
        rows: list[Facts] = []
        for one in self.choice.judged:
            model = one.plan.shape_of(teacher)
            rows.append(
                {
                    "made_by": made_by.get(one.plan, "tried on the way"),
                    "layers": len(one.plan.layers),
                    "width": model.width,
                    "params": description.param_count(model),
                    "macs": description.macs(model),
                    "cost": one.cost,
                    "divergence": one.divergence,
                    "chosen": one.plan == self.chosen.plan,
                    "reason": self._reason(one.plan, one.divergence),
                }
            )
        rows.sort(key=lambda row: (row["cost"], row["divergence"]))
        least = float("inf")
        for row in rows:
            row["front"], least = row["divergence"] < least, min(least, row["divergence"])
        return rows

    def _reason(self, plan: Plan, loss: float) -> str:
        """Why a plan was not taken; empty for the one that was."""
        if plan == self.chosen.plan:
            return ""
        if self.given.config.shape.stated:
            return "one layer alone removed, to tell which are missed least"
        teacher, best = self.cut_from.teacher.model, self.chosen.divergence
        cost, most = choosing.limit_of(self.cut_from)
        spent = cost(plan.shape_of(teacher))
        if most and spent > most:
            return f"above the budget: {spent:,} of {most:,}"
        if plan in self._raced():
            return "fell behind in the short distillations"
        if plan in [one.plan for one in self.choice.candidates[: self.given.config.halving.candidates]]:
            return "above the budget when it was measured, and so not distilled"
        if self._least_top1:
            return "not the fewest MACs whose best cut was seen to keep the accuracy"
        if loss > best:
            return f"further from the teacher: {loss:.4g} against {best:.4g} nats"
        return "found under another limit than the last one, whose cost was measured"

    @property
    def _least_top1(self) -> float:
        """What had to remain, where that was the budget; else 0."""
        met = self.choice.met
        return float(met["asked"]) if met.get("name") == least_accuracy.NAME else 0.0

    def _raced(self) -> list[Plan]:
        return [self.choice.candidates[row["before"]].plan for row in self.halving]

    def _halving(self) -> list[Facts]:
        rows = []
        for after, row in enumerate(self.halving):
            one = self.choice.candidates[row["before"]]
            rows.append({**row, "after": after, "made_by": one.made_by, "divergence": one.divergence})
        return rows

    def _why(self, candidates: list[Facts]) -> str:
        one, others = self.chosen, len(candidates) - 1
        if self.halving:
            rounds = self.halving[0]["rounds"]
            why = f"{sum(row['steps'] for row in rounds)} steps of distillation brought it nearest to the teacher"
            place = self.halving[0]["before"] + 1
            return f"“{one.made_by}” was chosen: {why}; before them it was number {place} of {others + 1}."
        if self.given.config.shape.stated:
            return f"Its sizes were stated (KL {one.divergence:.4g} nats on held-out images)."
        if self._least_top1:
            why = f"of the cuts that keep a validation top-1 of {self._least_top1:.6g} before any training it has the fewest MACs"
            return f"“{one.made_by}” was chosen: {why}; {others} others were cut, repaired and judged."
        why = f"of the plans within the budget it is nearest to the teacher (KL {one.divergence:.4g} nats on held-out images)"
        return f"“{one.made_by}” was chosen: {why}; {others} others were cut, repaired and judged."


def _layers(plan: Plan, teacher: ViT) -> list[Facts]:
    rows = []
    for layer, block in zip(plan.layers, plan.shape_of(teacher).blocks, strict=True):
        full = teacher.blocks[layer.source]
        names = ("num_heads", "qk_dim", "v_dim", "mlp_dim")
        rows.append(
            {"source": layer.source, "merge": block.merge}
            | {name: [getattr(block, name), getattr(full, name)] for name in names}
        )
    return rows


def _stem(plan: Plan, teacher: ViT) -> list[list[int]]:
    """Groups of inner channels that stay, and how many there were, of every unit of a hybrid's stem."""
    return [list(both) for both in zip(groups(plan.shape_of(teacher).stem), groups(teacher.stem))]


def _removed(plan: Plan, teacher: ViT) -> list[int]:
    return sorted(set(range(len(teacher.blocks))) - {layer.source for layer in plan.layers})
