"""Whether what a workdir holds is the run that is asked for: compared before anything is computed."""

import hashlib
import json
from pathlib import Path

from serving.command import UserError
from trainer import description
from trainer.checkpoint import Card, holds_training, load_card, steps
from trainer.config import COMPUTING, Experiment, changes, refuse_changes


def refuse_a_model(workdir: Path) -> None:
    """Refuses a workdir with what compression wrote, or another model alone: there is no training to go on with.

    Raises:
      UserError: naming what it holds.
    """
    if steps(workdir) and not holds_training(workdir):
        stage = load_card(workdir).meta["stage"]
        raise UserError(
            f"{workdir} holds a {stage} model, not a training run; give another --workdir "
            f"(to train this model further, with --config.pretrained={workdir})"
        )


def require_same_run(workdir: Path, experiment: Experiment, card: Card) -> list[str]:
    """Refuses to go on with another run; returns a line for each thing that is computed otherwise from here on.

    Raises:
      UserError: naming what is different, as it is there and now.
    """
    stored = load_card(workdir)
    refuse_changes(stored.meta["config_text"], experiment)
    for name, old, new in (
        ("a model of another shape", *map(_shape, (stored, card))),
        ("other preprocessing", stored.preprocess, card.preprocess),
        ("other classes", *(list(one.labels) for one in (stored, card))),
        ("another data set", *(one.meta["fingerprint"] for one in (stored, card))),
        ("other pretrained weights", *(one.meta.get("pretrained_hash", "") for one in (stored, card))),
        ("another teacher", *(one.meta["teacher_hash"] for one in (stored, card))),
    ):
        if old != new:
            raise UserError(
                f"{workdir} holds a run with {name}: {old or 'none'} there, {new or 'none'} now; "
                "give another --workdir, or what that run began with"
            )
    changed = changes(stored.meta["config_text"], experiment)
    return [
        f"{name}: {old} before, {new} from here on"
        for name, (old, new) in changed.items()
        if name in COMPUTING
    ]


def evaluation_is_done(workdir: Path) -> bool:
    """Whether the evaluation that was due at the newest checkpoint was made, and not cut off by a request to stop."""
    return bool(load_card(workdir).meta.get("evaluated", True))


def _shape(card: Card) -> str:
    """The model's size, and the sha256 of its description, in which any two differ."""
    text = json.dumps(card.to_json()["description"], sort_keys=True)
    size = description.param_count(card.description)
    return f"{size:,} parameters (description {hashlib.sha256(text.encode()).hexdigest()[:12]})"
