"""Weights as a command line asks for them: the flags that predict, export and convert share, and the loading that they ask for."""

import sys
from typing import TYPE_CHECKING, Any

from absl import flags

if TYPE_CHECKING:  # --help answers without starting JAX
    from trainer.weights.load import Weights


def define_identity(values: flags.FlagValues) -> None:
    """--model, --sha256 and --allow: what the weights are, and what may differ."""
    flags.DEFINE_string(
        "model",
        "",
        "The model's name, as in python -m tools.models; checkpoints and bundles know theirs.",
        flag_values=values,
    )
    flags.DEFINE_string("sha256", "", "Refuse weights with another digest.", flag_values=values)
    flags.DEFINE_list(
        "allow", [], "What may differ without being an error: missing, unused, resized.", flag_values=values
    )


def define_side(values: flags.FlagValues) -> None:
    """--image_size as one number."""
    flags.DEFINE_integer(
        "image_size",
        0,
        "Side of the square input in pixels; that of the weights when not given.",
        lower_bound=0,
        flag_values=values,
    )


def side(image_size: int) -> tuple[int, int] | None:
    """What --image_size asks for; None where it was not given."""
    return (image_size, image_size) if image_size else None


def load(path: str, model: str, **wanted: Any) -> "Weights":
    """The weights as `trainer.weights.load.load_weights` gives them; what became of the arrays is told on stderr.

    Raises:
      UserError: as `load_weights`.
    """
    from trainer.weights.load import load_weights

    weights = load_weights(path, model, **wanted)
    print(weights.report.summary(), file=sys.stderr)
    return weights
