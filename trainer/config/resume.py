"""What may change when a run goes on: where things are and how often they happen, never what is learnt.

Of a checkpoint or a data set only the path is configuration: whether the same thing still lies there is for the run to check, by
the hashes in its own checkpoint.
"""

from serving.command import UserError
from trainer.config.compression import Compression
from trainer.config.experiment import Experiment
from trainer.config.fields import defaults, flatten, from_text

MAY_CHANGE_ON_RESUME = frozenset(
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
        "remat",
        "scan_blocks",
        "mesh.data",
        "mesh.fsdp",
        "mesh.model",
        "mesh.slices",
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
    new = flatten(config)
    stored = defaults(type(config)) | from_text(stored_text)
    changed = [
        f"{name} is {stored.get(name, 'absent')!r} there, {new.get(name, 'absent')!r} now"
        for name in sorted((stored.keys() | new.keys()) - may_change)
        if stored.get(name) != new.get(name)
    ]
    if changed:
        raise UserError(
            f"the workdir holds {what}: {'; '.join(changed)}; give another --workdir, or the "
            f"same values (these may change: {', '.join(sorted(may_change))})"
        )
