"""From a configuration to the parts of a run on images with texts: pairs, an image tower, a text tower."""

from pathlib import Path

import jax

from serving import tokenise
from serving.command import UserError
from serving.preprocess import PreprocessSpec
from trainer import checkpoint, description
from trainer.checkpoint import Card
from trainer.config import Experiment
from trainer.data import datasets
from trainer.data.source import Dataset, require_channels
from trainer.description import Mixer, Model, TextTower, TwoTowers, ViT, uniform
from trainer.models.build import Params, init_params
from trainer.parts import Parts, preprocessing, run_meta
from trainer.weights import asked


def assemble_pair(experiment: Experiment) -> Parts:
    """Opens everything that `experiment` names.

    Raises:
      UserError: for pairs, a vocabulary or weights that cannot be read, or that do not fit together.
    """
    vocab = Path(experiment.text.vocab)
    tokens = tokenise.spec_of(vocab, experiment.text.max_tokens)
    dataset = datasets.open_pairs(experiment.dataset, tokens, vocab, experiment.bad_images)
    experiment = experiment.in_steps(len(dataset.train))
    image, params, spec = _image_tower(experiment, dataset)
    require_channels(dataset.train, spec.channels, dataset.name)
    model = TwoTowers(image, _text_tower(experiment, vocab, image), experiment.contrastive_loss == "sigmoid")
    first: Params | None = None
    if params is not None:
        first = {**jax.device_get(init_params(model, experiment.seed)), "image": params}
    _check_tokens(dataset, model.text, vocab)
    begun = checkpoint.weights_hash(params) if params is not None else ""
    meta = run_meta(experiment, dataset, stage="paired", pretrained_hash=begun)
    meta["tokeniser"] = tokens.to_json()
    return Parts(experiment, dataset, Card(model, spec, (), meta), first, None, None)


def _image_tower(experiment: Experiment, dataset: Dataset) -> tuple[ViT, Params | None, PreprocessSpec]:
    """The image tower without a classifier, its weights if any, and how it sees images.

    Raises:
      UserError: when it is to be locked and begins with nothing, or is no ViT.
    """
    if not experiment.pretrained:
        if experiment.lock_image:
            raise UserError(
                "lock_image=True keeps an image tower as it began, and pretrained names none; set pretrained, or lock_image=False"
            )
        spec = preprocessing(dataset, experiment.image_size)
        named = description.named(experiment.model, (spec.height, spec.width), spec.channels, 0)
        return _require_vit(named, experiment.model), None, spec
    own = bool(checkpoint.steps(Path(experiment.pretrained)))
    size = (experiment.image_size, experiment.image_size)
    weights = asked.load(
        experiment.pretrained, "" if own else experiment.model, image_size=size, head="remove"
    )
    spec = weights.prepared(experiment.pretrained, size)
    model = weights.description
    if isinstance(model, TwoTowers):
        return model.image, weights.params["image"], spec
    return _require_vit(model, experiment.pretrained), weights.params, spec


def _require_vit(model: Model, name: str) -> ViT:
    if isinstance(model, Mixer | TextTower | TwoTowers):
        raise UserError(f"{name} is of kind {model.kind!r}; the image tower of a pair is a ViT")
    return model


def _text_tower(experiment: Experiment, vocab: Path, image: ViT) -> TextTower:
    """Which reads as its vocabulary is written: BERT's begins with [CLS] and pads, SentencePiece's ends with </s>."""
    text, bert = experiment.text, vocab.suffix == ".txt"
    size = text.vocab_size or (len(vocab.read_text().splitlines()) if bert else 0)
    if not size:
        raise UserError(f"how many entries {vocab} has is not known here; set text.vocab_size")
    return TextTower(
        style="bert" if bert else "transformer",
        vocab_size=size,
        num_positions=text.max_tokens,
        max_tokens=text.max_tokens,
        width=text.width,
        blocks=uniform(text.layers, text.heads, text.width // text.heads, text.mlp_dim),
        embed_dim=image.num_outputs,
        norm_eps=1e-12 if bert else 1e-6,
    )


def _check_tokens(dataset: Dataset, text: TextTower, vocab: Path) -> None:
    for split in (dataset.train, dataset.validation, dataset.test):
        largest = int(split.labels.max())
        if largest >= text.vocab_size:
            raise UserError(
                f"{vocab} has the entry {largest}, for which text.vocab_size={text.vocab_size} has no room; set it to "
                f"{largest + 1} or above"
            )
