"""What may change when a run goes on: where things are, how often they happen, and how a step is computed, never what is learnt.

Of a checkpoint or a data set only the path is configuration: whether the same thing still lies there is for the run to check, by
the hashes in its own checkpoint.
"""

from typing import Any

from serving.command import UserError
from trainer.config.compression import Compression
from trainer.config.experiment import Experiment
from trainer.config.fields import defaults, flatten, from_text

# Of these a run says what they were; dropout and stochastic depth draw anew for each part of a batch.
COMPUTING = frozenset(
    {
        "accum_steps",
        "dtype",
        "remat",
        "scan_blocks",
        "mesh.data",
        "mesh.fsdp",
        "mesh.model",
        "mesh.slices",
    }
)
MAY_CHANGE_ON_RESUME = COMPUTING | frozenset(
    {
        "data_dir",
        "pretrained",
        "shape_of",
        "teacher_weights",
        "teacher_cache",
        "batch_eval",
        "log_every",
        "eval_every",
        "checkpoint_every",
        "keep_last",
        "keep_best",
        "workers",
        "text.vocab",
        "stall_after_s",
        "profile_steps",
        "compile_cache",
    }
)


def refuse_changes(
    stored_text: str,
    config: Experiment | Compression,
    what: str = "the checkpoint of another run",
    may_change: frozenset[str] = MAY_CHANGE_ON_RESUME,
) -> None:
    """Refuses a configuration that is not the one a stored run began with.

    A key that an older configuration lacks has its default there: keys added later must default to what was done before.

    Raises:
      UserError: naming every changed key with its stored and its new value.
    """
    changed = [
        f"{name} is {old!r} there, {new!r} now"
        for name, (old, new) in changes(stored_text, config).items()
        if name not in may_change
    ]
    if changed:
        raise UserError(
            f"the workdir holds {what}: {'; '.join(changed)}; give another --workdir, or the "
            f"same values (these may change: {', '.join(_listed(may_change, list(flatten(config))))})"
        )


def _listed(may_change: frozenset[str], names: list[str]) -> list[str]:
    """Those of `names` that may change; of a section of which most may, as a whole."""
    found = []
    for section in dict.fromkeys(name.rpartition(".")[0] for name in sorted(names)):
        own = [name for name in names if name.rpartition(".")[0] == section]
        fixed = [name for name in own if name not in may_change]
        if section and len(fixed) < len(own) / 2:
            found.append(f"{section}.*" + (f" but {' and '.join(fixed)}" if fixed else ""))
        else:
            found += sorted(name for name in own if name in may_change)
    return found


def changes(stored_text: str, config: Experiment | Compression) -> dict[str, tuple[Any, Any]]:
    """Key → (stored, new) of every key that differs, in the order of their names."""
    new, stored = flatten(config), defaults(type(config)) | from_text(stored_text)
    both = {
        name: (stored.get(name, "absent"), new.get(name, "absent")) for name in stored.keys() | new.keys()
    }
    return {name: pair for name, pair in sorted(both.items()) if pair[0] != pair[1]}
