"""timm's names (huggingface/pytorch-image-models): ViT, hybrid, DeiT and Mixer."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from serving.command import UserError
from trainer.description import Mixer, Model, ViT
from trainer.weights import families, neighbours, torch_names
from trainer.weights.archive import Archive, Header
from trainer.weights.contents import Contents, Facts, describe
from trainer.weights.forms import Places
from trainer.weights.names import Table

ANCHORS = ("patch_embed.proj.weight", "stem.proj.weight")  # of a ViT, of a Mixer
NORM_EPS = 1e-6
# Its standardised convolutions are a batch norm of the kernel.
STEM = {"norm_eps": 1e-5, "kernel_eps": 1e-8, "kernel_eps_on": "variance"}

_QKV = "blocks.{i}.attn.qkv"
_UNIT = "patch_embed.backbone.stages.{i}.blocks.{j}"
_VIT: Table = {
    "patch": "patch_embed.proj",
    "cls": "cls_token",
    "dist": "dist_token",
    "pos": "pos_embed",
    "blocks/*/norm1": "blocks.{i}.norm1",
    "blocks/*/attention/query": _QKV,
    "blocks/*/attention/key": _QKV,
    "blocks/*/attention/value": _QKV,
    "blocks/*/attention/out": "blocks.{i}.attn.proj",
    "blocks/*/norm2": "blocks.{i}.norm2",
    "blocks/*/mlp/fc1": "blocks.{i}.mlp.fc1",
    "blocks/*/mlp/fc2": "blocks.{i}.mlp.fc2",
    "norm": "norm",
    "head": "head",
    "head_dist": "head_dist",
    "stem/root": "patch_embed.backbone.stem.conv",
    "stem/root_norm": "patch_embed.backbone.stem.norm",
    "stem/stages/*/*/conv1": f"{_UNIT}.conv1",
    "stem/stages/*/*/conv2": f"{_UNIT}.conv2",
    "stem/stages/*/*/conv3": f"{_UNIT}.conv3",
    "stem/stages/*/*/proj": f"{_UNIT}.downsample.conv",
    "stem/stages/*/*/conv1_norm": f"{_UNIT}.norm1",
    "stem/stages/*/*/conv2_norm": f"{_UNIT}.norm2",
    "stem/stages/*/*/conv3_norm": f"{_UNIT}.norm3",
    "stem/stages/*/*/proj_norm": f"{_UNIT}.downsample.norm",
}
# A stem without stages is the whole backbone.
_ROOT_ALONE: Table = {
    "stem/root": "patch_embed.backbone.conv",
    "stem/root_norm": "patch_embed.backbone.norm",
}
_MIXER: Table = {
    "patch": "stem.proj",
    "blocks/*/norm1": "blocks.{i}.norm1",
    "blocks/*/tokens/fc1": "blocks.{i}.mlp_tokens.fc1",
    "blocks/*/tokens/fc2": "blocks.{i}.mlp_tokens.fc2",
    "blocks/*/norm2": "blocks.{i}.norm2",
    "blocks/*/channels/fc1": "blocks.{i}.mlp_channels.fc1",
    "blocks/*/channels/fc2": "blocks.{i}.mlp_channels.fc2",
    "norm": "norm",
    "head": "head",
}


def places(model: Model) -> Places:
    """Where every array of `model` lies in timm's state dict; empty for a model that timm does not have."""
    if isinstance(model, Mixer):
        return torch_names.places(model, _MIXER, fused=False)
    if not isinstance(model, ViT):
        return {}
    root_alone = model.stem is not None and not model.stem.stages
    return torch_names.places(model, _VIT | _ROOT_ALONE if root_alone else _VIT, fused=True)


def with_conventions(model: Model) -> Model:
    """`model` computed as timm computes it."""
    model = families.with_conventions(model, "erf", NORM_EPS)
    if isinstance(model, ViT) and model.stem:
        return dataclasses.replace(model, stem=dataclasses.replace(model.stem, **STEM))  # type: ignore[arg-type]
    return model


def recognise(archive: Archive, name: str, config: Mapping[str, Any]) -> Contents:
    """What a file with timm's names holds, read as the variant `name`; `config` is the JSON that the hub keeps beside it.

    Raises:
      UserError: when it is of another family.
    """
    headers, source = archive.headers, archive.source
    if "fc_norm.weight" in headers:
        raise UserError(
            f"{source} normalises after it averages (fc_norm.weight), which our models do not; "
            "give a model with norm.weight, in timm one built with fc_norm=False"
        )
    model = with_conventions(describe(name, _facts(headers), source))
    return Contents(
        description=model,
        places=places(model),
        family=_family(name, model),
        labels=neighbours.timm_labels(config, _classes(headers)),
        preprocess=neighbours.timm_preprocess(config),
    )


def _facts(headers: Mapping[str, Header]) -> Facts:
    shapes = {name: header.shape for name, header in headers.items()}
    roots = (_VIT["stem/root"], _ROOT_ALONE["stem/root"])
    stem = next((f"{root}.weight" for root in roots if f"{root}.weight" in shapes), "")
    first = shapes[stem or next(anchor for anchor in ANCHORS if anchor in shapes)]
    tokens = shapes.get("blocks.0.mlp_tokens.fc1.weight", (0, 0))
    return Facts(
        kind="vit" if ANCHORS[0] in shapes else "mixer",
        channels=first[1] if len(first) == 4 else 3,
        num_classes=_classes(headers),
        positions=shapes.get("pos_embed"),
        prefix_rows=("cls_token" in shapes) + ("dist_token" in shapes),
        mixed_patches=tokens[-1],
        has_class="cls_token" in shapes,
        has_distillation="dist_token" in shapes,
        has_stem=bool(stem),
    )


def _classes(headers: Mapping[str, Header]) -> int:
    return headers["head.bias"].shape[0] if "head.bias" in headers else 0


def _family(name: str, model: Model) -> str:
    if isinstance(model, Mixer):
        return "timm-mixer"
    # DeiT without its second token is a ViT by its arrays.
    if "deit" in name.lower():
        return "timm-deit"
    return "timm-hybrid" if isinstance(model, ViT) and model.stem else "timm-vit"
