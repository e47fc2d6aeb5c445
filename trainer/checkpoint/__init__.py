"""Checkpoints: our schema on disk, Orbax and tensorstore behind it and nowhere else.

    PATH/checkpoints/STEP/params   the nested dict of arrays, by name
                         /ema      their moving average, which is the model where it is there (training only)
                         /opt      what the optimiser keeps, by name (training only)
                         /recent   what steps were like of late (training only)
                         /meta     JSON: description, preprocessing, labels, configuration, data position, hashes

Training writes and restores through `TrainCheckpoints` (asynchronously, sharded, onto any mesh). A finished or cut model is
written by `save_model`. Everybody else reads with `load`, which takes just the chosen arrays, onto the host.
"""

from collections.abc import Sequence
from pathlib import Path

from trainer.checkpoint.card import Card, Loaded, Meta
from trainer.checkpoint.stored import holds_training, load, load_card, save_model, weights_hash
from trainer.checkpoint.training import State, TrainCheckpoints
from trainer.workdir import steps

__all__ = [
    "Card",
    "Loaded",
    "Meta",
    "State",
    "TrainCheckpoints",
    "export_optimized",
    "holds_training",
    "load",
    "load_card",
    "save_model",
    "steps",
    "weights_hash",
]


def export_optimized(
    model: str,
    input_shape: Sequence[int],
    output_path: str | Path,
    weights: str = "",
    *,
    precision: str = "fp32",
    images: Sequence[str] = (),
    sha256: str = "",
) -> Path:
    """Writes a bundle that `serving.main --model_repository=output_path` serves, and returns its folder.

    Args:
      model: a variant's name, such as "Ti_16"; may be empty when `weights` are a checkpoint of ours.
      input_shape: (batch, H, W, C) or (H, W, C); the batch stays free whatever is given.
      output_path: the model repository; the bundle goes to MODEL/1 in it, or to the next version.
      weights: of any origin that `trainer.weights.load` reads; fresh ones (with a warning) when empty.
      precision: "fp32", "int8", "int8_weights", or "auto": the fastest of them that holds, as measured.
      images: pictures and folders of them to prove on; int8 needs them.
      sha256: of the file of `weights`; not compared when empty.

    Raises:
      UserError: for a shape or a model that do not fit, or when the bundle would not say what the model says.
    """
    # Imported late: the exporter itself reads checkpoints.
    from trainer.export import optimized

    return optimized.export_optimized(
        model, input_shape, Path(output_path), weights, precision, images, sha256
    )
