"""Judging that an interruption does not undo: what a plan was found to be worth is kept on disk and not asked again."""

import hashlib
import json
from pathlib import Path
from typing import Any

from trainer.compress.plan import Plan, from_json
from trainer.compress.search import Judge, Teacher
from trainer.compress.stages import write_text


class RememberingJudge(Judge):
    """A judge that keeps in `path` the KL of every plan, by the sha256 of the plan.

    What was judged by other `hashes` (`Given.basis`) is forgotten.
    """

    def __init__(self, teacher: Teacher, path: Path, hashes: dict[str, str]) -> None:
        super().__init__(teacher)
        self._path, self._hashes = path, hashes
        self._asked = set[str]()
        stored: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
        self._found: dict[str, Any] = stored["plans"] if stored.get("hashes") == hashes else {}

    def __call__(self, plan: Plan) -> float:
        """KL of the repaired plan on images that repaired nothing, in nats."""
        values = plan.to_json()
        name = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
        self._asked.add(name)
        if name not in self._found:
            self._found[name] = {"divergence": super().__call__(plan), "plan": values}
            write_text(self._path, json.dumps({"hashes": self._hashes, "plans": self._found}) + "\n")
        return float(self._found[name]["divergence"])

    @property
    def judged(self) -> list[tuple[Plan, float]]:
        """Every plan that was asked for, and its KL; not those of a search that was refused before this one."""
        asked = [one for name, one in self._found.items() if name in self._asked]
        return [(from_json(one["plan"]), one["divergence"]) for one in asked]
