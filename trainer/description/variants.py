"""The published models by name; each is a value of the description."""

import dataclasses
import difflib
import re
from collections.abc import Callable
from typing import Literal

from serving.command import UserError
from trainer.description.mixer import Mixer
from trainer.description.serialise import Model
from trainer.description.stem import Stem
from trainer.description.text import TextTower
from trainer.description.towers import TwoTowers
from trainer.description.vit import ViT, uniform


@dataclasses.dataclass(frozen=True)
class _Data:
    """What a name leaves open: the images and the classes."""

    image_size: tuple[int, int]
    channels: int
    num_classes: int


_Build = Callable[[_Data], Model]


@dataclasses.dataclass(frozen=True)
class _Encoder:
    """The transformer of a published size."""

    width: int
    num_layers: int
    num_heads: int
    mlp_dim: int


# Ti and S: table 1 of "How to train your ViT?" (arXiv:2106.10270); B to H: table 1 of arXiv:2010.11929.
_TI, _S, _B = _Encoder(192, 12, 3, 768), _Encoder(384, 12, 6, 1536), _Encoder(768, 12, 12, 3072)
_L, _H = _Encoder(1024, 24, 16, 4096), _Encoder(1280, 32, 16, 5120)


def _vit(
    size: _Encoder,
    patch_size: int,
    pooling: Literal["cls", "gap"] = "cls",
    stages: tuple[int, ...] | None = None,
    gelu: Literal["tanh", "erf"] = "tanh",
    distilled: bool = False,
) -> Callable[[_Data], ViT]:
    def build(data: _Data) -> ViT:
        head_dim = size.width // size.num_heads
        return ViT(
            image_size=data.image_size,
            channels=data.channels,
            patch_size=patch_size,
            width=size.width,
            blocks=uniform(size.num_layers, size.num_heads, head_dim, size.mlp_dim),
            num_classes=data.num_classes,
            pooling=pooling,
            gelu=gelu,
            stem=None if stages is None else Stem(64, stages),
            distilled=distilled,
        )

    return build


def _mixer(
    width: int, num_blocks: int, tokens_mlp_dim: int, channels_mlp_dim: int, patch_size: int
) -> _Build:
    return lambda data: Mixer(
        image_size=data.image_size,
        channels=data.channels,
        patch_size=patch_size,
        width=width,
        num_blocks=num_blocks,
        tokens_mlp_dim=tokens_mlp_dim,
        channels_mlp_dim=channels_mlp_dim,
        num_classes=data.num_classes,
    )


def _lit(image: _Encoder, image_head: int, text: TextTower) -> _Build:
    tower = _vit(image, 16)
    return lambda data: TwoTowers(tower(dataclasses.replace(data, num_classes=image_head)), text)


_LIT_TOKENS = 16


def _bert(size: _Encoder, embed_dim: int) -> TextTower:
    return TextTower(
        style="bert",
        vocab_size=30_522,
        num_positions=512,
        max_tokens=_LIT_TOKENS,
        width=size.width,
        blocks=uniform(size.num_layers, size.num_heads, size.width // size.num_heads, size.mlp_dim),
        embed_dim=embed_dim,
        norm_eps=1e-12,
    )


def _text_transformer(size: _Encoder, embed_dim: int) -> TextTower:
    return TextTower(
        style="transformer",
        vocab_size=16_000,
        num_positions=_LIT_TOKENS,
        max_tokens=_LIT_TOKENS,
        width=size.width,
        blocks=uniform(size.num_layers, size.num_heads, size.width // size.num_heads, size.mlp_dim),
        embed_dim=embed_dim,
    )


_VARIANTS: dict[str, _Build] = {
    # Ours, for small pictures.
    "ViT-digits": _vit(_Encoder(64, 6, 4, 256), 4, "gap"),
    "ViT-fashion": _vit(_Encoder(128, 6, 4, 512), 7, "gap"),
    "ViT-fashion_4": _vit(_Encoder(128, 6, 4, 512), 4, "gap"),
    "ViT-fashion_4-large": _vit(_Encoder(256, 8, 4, 1024), 4, "gap"),
    # arXiv:2010.11929 and arXiv:2106.10270.
    "ViT-Ti_16": _vit(_TI, 16),
    "ViT-S_16": _vit(_S, 16),
    "ViT-S_32": _vit(_S, 32),
    "ViT-B_8": _vit(_B, 8),
    "ViT-B_16": _vit(_B, 16),
    "ViT-B_32": _vit(_B, 32),
    "ViT-L_16": _vit(_L, 16),
    "ViT-L_32": _vit(_L, 32),
    "ViT-H_14": _vit(_H, 14),
    "ViT-S_16-gap-norep": _vit(_S, 16, "gap"),
    "ViT-S_32-gap-norep": _vit(_S, 32, "gap"),
    "ViT-B_16-gap-norep": _vit(_B, 16, "gap"),
    "ViT-B_32-gap-norep": _vit(_B, 32, "gap"),
    # Hybrids. R+Ti/16: the stem shrinks by 4 and the patches by 8, so it has the tokens of a /32 in spite of its name.
    "R+ViT-Ti_16": _vit(_TI, 8, stages=()),
    "R26+ViT-S_32": _vit(_S, 1, stages=(2, 2, 2, 2)),
    "R26+ViT-B_32": _vit(_B, 1, stages=(2, 2, 2, 2)),
    "R50+ViT-B_16": _vit(_B, 1, stages=(3, 4, 9)),
    "R50+ViT-L_32": _vit(_L, 1, stages=(3, 4, 6, 3)),
    # DeiT, arXiv:2012.12877; the exact GELU is timm's.
    "DeiT-Ti_16": _vit(_TI, 16, gelu="erf"),
    "DeiT-S_16": _vit(_S, 16, gelu="erf"),
    "DeiT-B_16": _vit(_B, 16, gelu="erf"),
    "DeiT-Ti_16-distilled": _vit(_TI, 16, gelu="erf", distilled=True),
    "DeiT-S_16-distilled": _vit(_S, 16, gelu="erf", distilled=True),
    "DeiT-B_16-distilled": _vit(_B, 16, gelu="erf", distilled=True),
    # arXiv:2105.01601.
    "Mixer-B_16": _mixer(768, 12, 384, 3072, 16),
    "Mixer-B_32": _mixer(768, 12, 384, 3072, 32),
    "Mixer-L_16": _mixer(1024, 24, 512, 4096, 16),
    # arXiv:2111.07991.
    "LiT-B16B": _lit(_B, 768, _bert(_B, 768)),
    "LiT-B16B_2": _lit(_B, 0, _bert(_B, 768)),
    "LiT-L16L": _lit(_L, 0, _bert(_L, 1024)),
    "LiT-L16S": _lit(_L, 0, _text_transformer(_S, 1024)),
    "LiT-L16Ti": _lit(_L, 0, _text_transformer(_TI, 1024)),
}


def variant_names() -> tuple[str, ...]:
    """The names that `named` knows."""
    return tuple(_VARIANTS)


def named(name: str, image_size: tuple[int, int], channels: int, num_classes: int) -> Model:
    """The variant called `name` (`Ti_16`, `ViT-Ti_16`, `Ti/16`, `R_Ti_16`, `vit_tiny_patch16_224` …) for these images and classes.

    A LiT pair has embeddings instead of classes: `num_classes` means nothing to it.

    Raises:
      UserError: for an unknown name, with the nearest known one.
    """
    wanted = _spelling(name)
    known = {_spelling(variant): variant for variant in _VARIANTS}
    if wanted not in known:
        near = difflib.get_close_matches(wanted, known, n=1, cutoff=0.0)
        raise UserError(
            f"unknown model {name!r}; nearest is {known[near[0]]!r} (python -m tools.models lists them)"
        )
    return _VARIANTS[known[wanted]](_Data(image_size, channels, num_classes))


# timm's words for the sizes; a resolution at the end of a name is given by --image_size here.
_WORDS = {"tiny": "ti", "small": "s", "base": "b", "large": "l", "huge": "h", "patch": ""}


# There a hybrid's patch counts cells of the stem's grid (p8), or the pixels of a token (s16, s32).
_TIMM_HYBRIDS = {
    "vit_tiny_r_s16_p8": "r_ti_16",
    "vit_small_r26_s32": "r26_s_32",
    "vit_base_r26_s32": "r26_b_32",
    "vit_base_r50_s16": "r50_b_16",
    "vit_large_r50_s32": "r50_l_32",
}


def _spelling(name: str) -> str:
    # "google/vit-base-patch16-224-in21k", "vit_base_patch16_224.augreg_in21k", "Ti_16-i21k-300ep-…": what stands around a name.
    plain = re.sub(r"^(google|facebook|timm)/", "", name.lower())
    plain = re.sub(r"\..*$|[_-]i(n)?(1k|21k).*$", "", plain)
    plain = _TIMM_HYBRIDS.get(re.sub(r"[_-](224|384)$", "", plain), plain)
    plain = re.sub(r"[_-](224|384)$", "", plain)
    for word, short in _WORDS.items():
        plain = plain.replace(word, short)
    letters = re.sub(r"[^a-z0-9]", "", plain).replace("vit", "").removeprefix("lit")
    # timm says "distilled" before the patch size.
    return letters.replace("distilled", "") + "distilled" if "distilled" in letters else letters
