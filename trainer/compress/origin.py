"""Where the teacher that is cut comes from, as a command line says it. Imports no JAX: --help answers at once."""

import dataclasses

from absl import flags

from trainer.weights import asked

NEEDED = "one of --checkpoint and --weights"


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where the teacher is: the folder of a checkpoint, or `weights`: a bundle, or the path or URL of a published file."""

    path: str
    weights: bool = False
    model: str = ""  # what a published file is of; bundles and checkpoints know theirs
    sha256: str = ""
    allow: tuple[str, ...] = ()


def define(values: flags.FlagValues) -> None:
    """--checkpoint, --weights, and what goes with weights."""
    flags.DEFINE_string(
        "checkpoint", None, "The teacher: a training workdir or one of its checkpoints.", flag_values=values
    )
    flags.DEFINE_string(
        "weights",
        None,
        "The teacher: a bundle's folder, or npz or safetensors, PATH or URL, with --model.",
        flag_values=values,
    )
    asked.define_identity(values)


def of(values: flags.FlagValues) -> Origin | None:
    """What was asked; None where it is not one of both."""
    checkpoint, weights, model = (values[name].value for name in ("checkpoint", "weights", "model"))
    if bool(checkpoint) == bool(weights) or (checkpoint and model):
        return None
    allow = tuple(values["allow"].value)
    return Origin(checkpoint or weights, bool(weights), model, values["sha256"].value, allow)
