"""The names of ViT and DeiT in Hugging Face transformers."""

from collections.abc import Mapping
from typing import Any, Literal

from serving.command import UserError
from trainer.description import Model, ViT
from trainer.weights import families, neighbours, torch_names
from trainer.weights.archive import Archive, Header
from trainer.weights.contents import Contents, Facts, describe
from trainer.weights.forms import Places
from trainer.weights.names import Table

ANCHOR = "embeddings.patch_embeddings.projection.weight"
_NORM_EPS = 1e-12
_GELUS: dict[str, Literal["tanh", "erf"]] = {
    "gelu": "erf",
    "gelu_new": "tanh",
    "gelu_pytorch_tanh": "tanh",
    "gelu_fast": "tanh",
}

_ATTENTION = "encoder.layer.{i}.attention"
_ENCODER: Table = {
    "patch": "embeddings.patch_embeddings.projection",
    "cls": "embeddings.cls_token",
    "dist": "embeddings.distillation_token",
    "pos": "embeddings.position_embeddings",
    "blocks/*/norm1": "encoder.layer.{i}.layernorm_before",
    "blocks/*/attention/query": f"{_ATTENTION}.attention.query",
    "blocks/*/attention/key": f"{_ATTENTION}.attention.key",
    "blocks/*/attention/value": f"{_ATTENTION}.attention.value",
    "blocks/*/attention/out": f"{_ATTENTION}.output.dense",
    "blocks/*/norm2": "encoder.layer.{i}.layernorm_after",
    "blocks/*/mlp/fc1": "encoder.layer.{i}.intermediate.dense",
    "blocks/*/mlp/fc2": "encoder.layer.{i}.output.dense",
    "norm": "layernorm",
}
_HEAD: Table = {"head": "classifier"}
_TWO_HEADS: Table = {"head": "cls_classifier", "head_dist": "distillation_classifier"}


def is_hugging_face(headers: Mapping[str, Header]) -> bool:
    """Whether the arrays are named so."""
    return _prefix(headers) is not None


def _prefix(headers: Mapping[str, Header]) -> str | None:
    """What stands before the encoder's names: "vit.", "deit.", or nothing for a model without head."""
    return next((prefix for prefix in ("vit.", "deit.", "") if prefix + ANCHOR in headers), None)


def places(model: Model, prefix: str) -> Places:
    """Where every array of `model` lies; empty for a model that is no ViT."""
    if not isinstance(model, ViT):
        return {}
    encoder = {ours: prefix + theirs for ours, theirs in _ENCODER.items()}
    return torch_names.places(model, encoder | (_TWO_HEADS if model.distilled else _HEAD), fused=False)


def recognise(
    archive: Archive, name: str, config: Mapping[str, Any], preprocessor: Mapping[str, Any]
) -> Contents:
    """What a file with these names holds, read as the variant `name`, with the two JSON files that transformers keeps beside it.

    Raises:
      UserError: when it is of another family, or computed by a formula that our models do not have.
    """
    headers, source = archive.headers, archive.source
    prefix = _prefix(headers) or ""
    facts = _facts(headers, prefix)
    activation = str(config.get("hidden_act", "gelu"))
    if activation not in _GELUS:
        raise UserError(f"{source}: hidden_act is {activation!r}; our models have {', '.join(_GELUS)}")
    norm_eps = float(config.get("layer_norm_eps", _NORM_EPS))
    model = families.with_conventions(describe(name, facts, source), _GELUS[activation], norm_eps)
    pooler = {one: "no layer of the model" for one in headers if one.startswith(f"{prefix}pooler.")}
    return Contents(
        description=model,
        places=places(model, prefix),
        family="huggingface-deit" if prefix == "deit." or "deit" in name.lower() else "huggingface-vit",
        set_aside=pooler,
        labels=neighbours.hugging_face_labels(config, facts.num_classes),
        preprocess=neighbours.hugging_face_preprocess(preprocessor),
    )


def _facts(headers: Mapping[str, Header], prefix: str) -> Facts:
    shapes = {name: header.shape for name, header in headers.items()}
    first = shapes[prefix + ANCHOR]
    has_class, has_distillation = (f"{prefix}{_ENCODER[token]}" in shapes for token in ("cls", "dist"))
    head = _TWO_HEADS["head"] if has_distillation else _HEAD["head"]
    return Facts(
        kind="vit",
        channels=first[1] if len(first) == 4 else 3,
        num_classes=shapes.get(f"{head}.bias", (0,))[0],
        positions=shapes.get(prefix + _ENCODER["pos"]),
        prefix_rows=has_class + has_distillation,
        has_class=has_class,
        has_distillation=has_distillation,
    )
