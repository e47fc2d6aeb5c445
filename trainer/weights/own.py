"""Weights of our own: checkpoints, and bundles with a float model, which say themselves what they are."""

import dataclasses
from pathlib import Path

from google.protobuf import json_format

from serving.bundle import MANIFEST, read_bundle
from serving.command import UserError
from serving.preprocess import PreprocessSpec
from trainer import description
from trainer.description import Mixer, Model, TwoTowers, ViT, named
from trainer.models.build import flatten
from trainer.weights.adapt import Stored, shapes_of
from trainer.weights.onnx_arrays import arrays_of
from trainer.weights.report import Report


@dataclasses.dataclass(frozen=True)
class Own:
    """A model with what it says of itself; `digest` is of its arrays, or of the bundle's model file."""

    stored: Stored
    preprocess: PreprocessSpec | None
    labels: tuple[str, ...]
    family: str
    digest: str


def load_own(folder: Path, name: str) -> Own:
    """The checkpoint or bundle in `folder`; `name`, where it is given, must be of the same shape.

    Raises:
      UserError: when there is neither, it is damaged, or it is of another shape than `name`.
    """
    own = _bundle(folder) if (folder / MANIFEST).is_file() else _checkpoint(folder)
    if name:
        _check_named(own.stored.model, name, folder)
    return own


def _checkpoint(folder: Path) -> Own:
    from trainer import checkpoint  # Orbax takes a second to import; files of weights do without

    loaded = checkpoint.load(folder)
    arrays = flatten(loaded.params)
    return Own(
        Stored(loaded.description, arrays, Report(loaded=tuple(arrays))),
        loaded.preprocess,
        tuple(loaded.labels),
        "checkpoint",
        loaded.meta["weights_hash"],
    )


_FOLDED = (
    "a bundle keeps biases and tokens within its positions: the answers are the same, some arrays are not"
)


def _bundle(folder: Path) -> Own:
    bundle = read_bundle(folder)
    model = description.from_json(json_format.MessageToDict(bundle.manifest.description))
    precisions = [one.precision for one in bundle.manifest.models]
    if "fp32" not in precisions or not isinstance(model, ViT | Mixer):
        what = f"a model of kind {model.kind!r} in {', '.join(precisions)}"
        raise UserError(
            f"bundle {folder} holds {what}; weights can be taken from the fp32 bundle of an image model, "
            "or give the checkpoint that it was made of"
        )
    _, path = bundle.model_file("fp32")
    arrays = arrays_of(path, model)
    report = Report(loaded=tuple(arrays), remarks=(_FOLDED,))
    digest = bundle.manifest.digests[path.name].removeprefix("sha256:")
    has_preprocess = bundle.manifest.HasField("preprocessing")
    return Own(
        Stored(model, arrays, report),
        bundle.preprocess if has_preprocess else None,
        tuple(bundle.manifest.labels),
        "bundle",
        digest,
    )


def _check_named(model: Model, name: str, folder: Path) -> None:
    tower = model.image if isinstance(model, TwoTowers) else model
    size = tower.image_size if isinstance(tower, ViT | Mixer) else (224, 224)
    channels = tower.channels if isinstance(tower, ViT | Mixer) else 3
    classes = model.num_classes if isinstance(model, ViT | Mixer) else 0
    variant = named(name, size, channels, classes)
    if isinstance(variant, ViT) and isinstance(model, ViT) and not variant.distilled:
        variant = dataclasses.replace(variant, pooling=model.pooling)
    asked, held = shapes_of(variant), shapes_of(model)
    for array in sorted(asked.keys() | held.keys()):
        if asked.get(array) != held.get(array):
            raise UserError(
                f"{folder} holds another model than {name}: array {array} has shape {held.get(array, 'missing')}, "
                f"expected is {asked.get(array, 'no such array')}; leave the model's name out, it says itself what it is"
            )
