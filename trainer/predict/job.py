"""One prediction: model, inputs, answers, files."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np

from serving.command import UserError, require_folder
from serving.tokenise import check_tokens, spec_of, tokenise
from trainer.data import pictures
from trainer.predict import answers, arrays, predictor
from trainer.predict.arrays import Array
from trainer.predict.predictor import Predictor, in_batches
from trainer.weights import asked
from trainer.weights.load import Weights


@dataclasses.dataclass(frozen=True)
class Request:
    """What to ask of which model; the fields are the flags of the command."""

    weights: str
    model: str
    sha256: str
    allow: list[str]
    image_size: int
    images: list[str]
    inputs: str
    tokens: str
    labels: list[str]
    vocab: str
    logits: str
    embeddings: str
    top_k: int
    batch: int
    threads: int


def predict(request: Request) -> dict[str, object]:
    """Answers; files are written only when everything could be answered.

    Raises:
      UserError: for weights, inputs or outputs that do not fit.
    """
    for flag in ("logits", "embeddings"):
        if path := getattr(request, flag):
            require_folder(Path(path).absolute().parent, f"--{flag}")
    ready = arrays.normalised_images(request.inputs) if request.inputs else None
    files = pictures.find_pictures(request.images) if request.images else []  # before weights are read
    model, origin = _open(request, ready)
    _check_asked(request, model)
    names, images = _images(request, model, ready, files)
    result: dict[str, object] = {
        **origin,
        "preprocess": model.preprocess.to_json() if model.preprocess and request.images else None,
    }
    if model.classifies:
        return {**result, **_classify(request, model, names, images)}
    return {**result, **_embed(request, model, names, images)}


def _open(request: Request, ready: Array | None) -> tuple[Predictor, dict[str, object]]:
    if predictor.is_bundle(request.weights):
        _refuse_for_bundles(request)
        return predictor.served(request.weights, request.threads), {
            "weights": request.weights,
            "family": "bundle",
        }
    size = asked.side(request.image_size)
    if ready is not None and size is None:
        size = (ready.shape[1], ready.shape[2])  # ready arrays say for which resolution they are
    weights = asked.load(
        request.weights, request.model, image_size=size, sha256=request.sha256, allow=request.allow
    )
    return predictor.live(weights), _origin(request, weights)


def _refuse_for_bundles(request: Request) -> None:
    """A bundle says itself what it is, seals itself and has one size."""
    for flag in ("model", "sha256", "image_size", "allow"):
        if getattr(request, flag):
            raise UserError(
                f"--{flag} is for files of weights; {request.weights} is a bundle, which says itself what it is: leave it out"
            )


def _origin(request: Request, weights: Weights) -> dict[str, object]:
    report = weights.report
    return {
        "weights": request.weights,
        "family": weights.family,
        "sha256": weights.sha256,
        "loaded": len(report.loaded),
        "remarks": list(report.remarks),
        **{name: list(getattr(report, name)) for name in ("resized", "created", "unused")},
    }


def _check_asked(request: Request, model: Predictor) -> None:
    if model.text is None and (request.tokens or request.labels or (request.embeddings and model.classifies)):
        raise UserError(
            "--tokens, --labels and --embeddings are for LiT pairs; this model has no text tower (see python -m tools.models)"
        )
    if request.logits and not model.classifies:
        raise UserError("--logits is for classifiers; this model makes embeddings: use --embeddings=out.npz")


def _images(
    request: Request, model: Predictor, ready: Array | None, files: list[Path]
) -> tuple[list[str], Array | None]:
    if ready is not None:
        if ready.shape[1:] != model.image_shape:
            raise UserError(
                f"--inputs={request.inputs} holds images of {ready.shape[1:]}, the model takes {model.image_shape}"
            )
        return [f"{request.inputs}[{index}]" for index in range(len(ready))], ready
    if not files:
        return [], None
    if model.preprocess is None:
        raise UserError(
            "these weights do not say how pictures are prepared for them; give a ready array as --inputs"
        )
    return [str(file) for file in files], pictures.read_pictures(files, model.preprocess)


def _classify(
    request: Request, model: Predictor, names: list[str], images: Array | None
) -> dict[str, object]:
    if images is None or model.images is None:
        raise UserError("a classifier needs --images or --inputs")
    logits = in_batches(model.images, images, request.batch, "predict").astype(np.float32)
    if request.logits:
        np.save(_writable(request.logits), logits)
    return _told(request, names, logits, model.labels, {"logits": request.logits or None})


def _embed(request: Request, model: Predictor, names: list[str], images: Array | None) -> dict[str, object]:
    made: dict[str, Array] = {}
    tokens = _tokens(request, model)
    if images is not None and model.images is not None:
        made["zimg"] = in_batches(model.images, images, request.batch, "images")
    if tokens is not None and model.texts is not None:
        made["ztxt"] = in_batches(model.texts, tokens, request.batch, "texts")
    if model.scale is not None:
        made["t"] = np.array([model.scale], np.float32)
    if request.embeddings:
        np.savez(_writable(request.embeddings), **made)  # type: ignore[arg-type]
    rest: dict[str, object] = {
        "embeddings": request.embeddings or None,
        "shapes": {name: list(one.shape) for name, one in made.items()},
    }
    if not request.labels or "zimg" not in made or model.scale is None:
        return rest
    logits = answers.similarities(made["zimg"], made["ztxt"], model.scale)
    return _told(request, names, logits, tuple(request.labels), rest)


def _writable(path: str) -> str:
    """`path`, in a folder that exists now."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    return path


def _tokens(request: Request, model: Predictor) -> Array | None:
    if model.text is None:
        return None
    if request.labels:
        if not request.vocab:
            raise UserError(
                "--labels needs the vocabulary of the text tower: --vocab=vocab.txt or --vocab=vocab.model"
            )
        vocab = Path(request.vocab)
        tokens = tokenise(request.labels, spec_of(vocab, model.text.max_tokens), vocab)
    elif request.tokens:
        tokens = arrays.read_array("tokens", request.tokens, "B T", "integers")
    else:
        return None
    check_tokens(tokens, model.text.vocab_size, model.text.num_positions)
    return tokens.astype(np.int32)


def _told(
    request: Request, names: list[str], logits: Array, labels: tuple[str, ...], rest: dict[str, Any]
) -> dict[str, object]:
    told = answers.top(names, logits, labels, min(request.top_k, logits.shape[-1]))
    print(answers.readable(told), file=sys.stderr)
    return {**rest, "predictions": told}
