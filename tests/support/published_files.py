"""Small models under names of their own, and files of weights as others publish them, written down by hand.

What is expected of a loader is not asked of the loader: names and axes of these files do not come from `trainer.weights`.
"""

import dataclasses
import re
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from trainer.description import Mixer, Model, Stem, TextTower, TwoTowers, ViT, uniform, variants

Array = np.ndarray[Any, np.dtype[Any]]
File = dict[str, Array]

WIDTH, HEADS, LAYERS, MLP, PATCH, CLASSES = 16, 2, 2, 24, 4, 10
_VIT = ViT((16, 16), 3, PATCH, WIDTH, uniform(LAYERS, HEADS, WIDTH // HEADS, MLP), CLASSES)
_HYBRID = dataclasses.replace(_VIT, patch_size=1, stem=Stem(32, (1, 2)), image_size=(64, 64))
_DEIT = dataclasses.replace(_VIT, distilled=True, gelu="erf")
_MIXER = Mixer((16, 16), 3, PATCH, WIDTH, LAYERS, 12, MLP, CLASSES)
_TEXT = TextTower("transformer", 30, 4, 4, WIDTH, _VIT.blocks, WIDTH)
_BERT = dataclasses.replace(_TEXT, style="bert", num_positions=8)
SMALL: dict[str, Model] = {
    "Toy": _VIT,
    "Toyroot": dataclasses.replace(_VIT, stem=Stem(32, ()), image_size=(64, 64)),
    "Toyhybrid": _HYBRID,
    "Toydeit": dataclasses.replace(_VIT, gelu="erf"),
    "Toydeit-distilled": _DEIT,
    "Toymixer": _MIXER,
    "Toypair": TwoTowers(dataclasses.replace(_VIT, num_classes=0), _TEXT),
    "Toypairbert": TwoTowers(dataclasses.replace(_VIT, num_classes=WIDTH), _BERT),
}


def register(setitem: Callable[[dict[str, Any], str, Any], None]) -> None:
    """Makes the names of SMALL known to `trainer.description.named`; `setitem` is monkeypatch's."""
    for name, model in SMALL.items():
        setitem(variants._VARIANTS, name, lambda data, model=model: _build(model, data))


def _build(model: Model, data: Any) -> Model:
    if isinstance(model, TwoTowers):
        image = dataclasses.replace(model.image, image_size=data.image_size, channels=data.channels)
        return dataclasses.replace(model, image=image)
    fields = {name: getattr(data, name) for name in ("image_size", "channels", "num_classes")}
    return dataclasses.replace(model, **fields)


def _random(name: str, *shape: int) -> Array:
    """Values that differ between any two names."""
    return np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)


def _encoder(at: str, linen: bool) -> dict[str, tuple[int, ...]]:
    norm2, attention, mlp = ("LayerNorm_1", 0, 0) if linen else ("LayerNorm_2", 1, 3)
    dim, shapes = WIDTH // HEADS, {}
    for layer in range(LAYERS):
        block = f"{at}/encoderblock_{layer}"
        heads = f"{block}/MultiHeadDotProductAttention_{attention}"
        for part in ("query", "key", "value"):
            shapes[f"{heads}/{part}/kernel"] = (WIDTH, HEADS, dim)
            shapes[f"{heads}/{part}/bias"] = (HEADS, dim)
        shapes[f"{heads}/out/kernel"] = (HEADS, dim, WIDTH)
        shapes[f"{heads}/out/bias"] = (WIDTH,)
        for norm in ("LayerNorm_0", norm2):
            shapes |= {f"{block}/{norm}/scale": (WIDTH,), f"{block}/{norm}/bias": (WIDTH,)}
        shapes |= _dense(f"{block}/MlpBlock_{mlp}/Dense_0", WIDTH, MLP)
        shapes |= _dense(f"{block}/MlpBlock_{mlp}/Dense_1", MLP, WIDTH)
    return shapes | {f"{at}/encoder_norm/scale": (WIDTH,), f"{at}/encoder_norm/bias": (WIDTH,)}


def _dense(at: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{at}/kernel": (inputs, outputs), f"{at}/bias": (outputs,)}


def vit_npz(grid: int = 4, classes: int = CLASSES, has_class: bool = True, linen: bool = False) -> File:
    """A released ViT: plain names, or Linen's numbering."""
    shapes: dict[str, tuple[int, ...]] = {
        "embedding/kernel": (PATCH, PATCH, 3, WIDTH),
        "embedding/bias": (WIDTH,),
        "Transformer/posembed_input/pos_embedding": (1, grid**2 + has_class, WIDTH),
        **_encoder("Transformer", linen),
        **_dense("head", WIDTH, classes),
    }
    if has_class:
        shapes["cls"] = (1, 1, WIDTH)
    return _filled(shapes)


def _filled(shapes: dict[str, tuple[int, ...]]) -> File:
    # A value must not depend on the numbering of its name.
    return {name: _random(_unnumbered(name), *shape) for name, shape in shapes.items()}


def _unnumbered(name: str) -> str:
    for released, linen in (
        ("LayerNorm_2", "LayerNorm_1"),
        ("Attention_1", "Attention_0"),
        ("Block_3", "Block_0"),
    ):
        name = name.replace(released, linen)
    return name


def hybrid_npz(stages: tuple[int, ...] = (1, 2), old_norms: bool = False) -> File:
    """A hybrid: the same behind a ResNet stem of width 32, of 64 px images."""
    file = vit_npz(grid=8 if stages else 4)
    shapes: dict[str, tuple[int, ...]] = {"conv_root/kernel": (7, 7, 3, 32)}
    convolutions = {"gn_root": 32}
    before = 32
    for stage, units in enumerate(stages):
        inner = 32 * 2**stage
        for unit in range(units):
            at = f"block{stage + 1}/unit{unit + 1}"
            parts = {"1": (1, 1, before, inner), "2": (3, 3, inner, inner), "3": (1, 1, inner, 4 * inner)}
            if unit == 0:
                parts["_proj"] = (1, 1, before, 4 * inner)
            for part, shape in parts.items():
                shapes[f"{at}/conv{part}/kernel"] = shape
                convolutions[f"{at}/gn{part}"] = shape[-1]
            before = 4 * inner
    for norm, channels in convolutions.items():
        shapes |= {
            f"{norm}/{leaf}": (1, 1, 1, channels) if old_norms else (channels,) for leaf in ("scale", "bias")
        }
    patch = 1 if stages else PATCH
    shapes["embedding/kernel"] = (patch, patch, before, WIDTH)
    return file | _filled(shapes)


def mixer_npz() -> File:
    """A Mixer of 16 patches."""
    shapes: dict[str, tuple[int, ...]] = {"stem/kernel": (PATCH, PATCH, 3, WIDTH), "stem/bias": (WIDTH,)}
    for layer in range(LAYERS):
        block = f"MixerBlock_{layer}"
        for norm in ("LayerNorm_0", "LayerNorm_1"):
            shapes |= {f"{block}/{norm}/scale": (WIDTH,), f"{block}/{norm}/bias": (WIDTH,)}
        for mlp, width, inner in (("token_mixing", 16, 12), ("channel_mixing", WIDTH, MLP)):
            shapes |= _dense(f"{block}/{mlp}/Dense_0", width, inner) | _dense(
                f"{block}/{mlp}/Dense_1", inner, width
            )
    shapes |= {"pre_head_layer_norm/scale": (WIDTH,), "pre_head_layer_norm/bias": (WIDTH,)}
    return _filled(shapes | _dense("head", WIDTH, CLASSES))


def pair_npz(bert: bool = False) -> File:
    """A LiT pair: with the small text transformer, or with BERT and a head on either side."""
    image = vit_npz(classes=WIDTH)
    if not bert:
        image = {name: array for name, array in image.items() if not name.startswith("head/")}
    text = _bert() if bert else _text()
    towers = {f"img/{name}": array for name, array in image.items()} | {
        f"txt/{name}": array for name, array in text.items()
    }
    return towers | {"t": np.array([2.5], np.float32)}


def _text() -> File:
    shapes: dict[str, tuple[int, ...]] = {"Embed_0/embedding": (30, WIDTH), "pos_embedding": (1, 4, WIDTH)}
    return _filled(shapes | _encoder("Encoder_0", linen=True) | _dense("head", WIDTH, WIDTH))


def _bert() -> File:
    at = "BertEncoder_0"
    shapes: dict[str, tuple[int, ...]] = {
        f"{at}/embedder/embedders_token_ids/embedding": (30, WIDTH),
        f"{at}/embedder/embedders_position_ids/embedding": (8, WIDTH),
        f"{at}/embedder/embedders_segment_ids/embedding": (2, WIDTH),
        f"{at}/layer_norm/scale": (WIDTH,),
        f"{at}/layer_norm/bias": (WIDTH,),
    }
    for layer in range(LAYERS):
        block = f"{at}/encoder_block/layer_sequence/layers_{layer}"
        for part in ("attention_layer/query", "attention_layer/key", "attention_layer/value", "dense_layer"):
            shapes |= _dense(f"{block}/attention_block/{part}", WIDTH, WIDTH)
        shapes |= _dense(f"{block}/mlp_block/mlp/dense_layer", WIDTH, MLP)
        shapes |= _dense(f"{block}/mlp_block/dense_layer", MLP, WIDTH)
        for part in ("attention_block", "mlp_block"):
            shapes |= {f"{block}/{part}/layer_norm/{leaf}": (WIDTH,) for leaf in ("scale", "bias")}
    return _filled(shapes | _dense("head", WIDTH, WIDTH))


def stacked(file: File) -> File:
    """The same with one array for all layers, as big_vision's scan keeps them."""
    kept, layers = {}, dict[str, dict[int, Array]]()
    for name, array in file.items():
        if found := re.match(r"(.*encoderblock)_(\d+)(/.*)", name):
            layers.setdefault(found[1] + found[3], {})[int(found[2])] = array
        else:
            kept[name] = array
    return kept | {
        name: np.stack([one for _, one in sorted(parts.items())]) for name, parts in layers.items()
    }


def positions_at_top(file: File) -> File:
    """The same with big_vision's positions: at the top, and without a row for the class token."""
    moved = dict(file)
    table = moved.pop("Transformer/posembed_input/pos_embedding")
    moved["pos_embedding"] = table[:, 1:] if "cls" in file else table
    return moved


def below(prefix: str, file: File) -> File:
    """The same with `prefix` before every name."""
    return {prefix + name: array for name, array in file.items()}


def timm(name: str = "Toy", grid: int = 4) -> File:
    """timm's state dict of a ViT, a DeiT with its second token ("Toydeit-distilled") or a Mixer."""
    mixer, distilled = name == "Toymixer", name.endswith("distilled")
    stem = "stem.proj" if mixer else "patch_embed.proj"
    shapes: dict[str, tuple[int, ...]] = {
        f"{stem}.weight": (WIDTH, 3, PATCH, PATCH),
        f"{stem}.bias": (WIDTH,),
    }
    if not mixer:
        shapes |= {"cls_token": (1, 1, WIDTH), "pos_embed": (1, grid**2 + 1 + distilled, WIDTH)}
    if distilled:
        shapes |= {"dist_token": (1, 1, WIDTH), **_linear("head_dist", WIDTH, CLASSES)}
    for layer in range(LAYERS):
        at = f"blocks.{layer}"
        for norm in ("norm1", "norm2"):
            shapes |= {f"{at}.{norm}.weight": (WIDTH,), f"{at}.{norm}.bias": (WIDTH,)}
        if mixer:
            shapes |= _linear(f"{at}.mlp_tokens.fc1", 16, 12) | _linear(f"{at}.mlp_tokens.fc2", 12, 16)
        else:
            shapes |= _linear(f"{at}.attn.qkv", WIDTH, 3 * WIDTH) | _linear(f"{at}.attn.proj", WIDTH, WIDTH)
        mlp = "mlp_channels" if mixer else "mlp"
        shapes |= _linear(f"{at}.{mlp}.fc1", WIDTH, MLP) | _linear(f"{at}.{mlp}.fc2", MLP, WIDTH)
    shapes |= {"norm.weight": (WIDTH,), "norm.bias": (WIDTH,), **_linear("head", WIDTH, CLASSES)}
    return _filled(shapes)


def hugging_face(distilled: bool = False) -> File:
    """transformers' state dict of ViTForImageClassification, or of DeiTForImageClassificationWithTeacher."""
    at = "deit" if distilled else "vit"
    shapes: dict[str, tuple[int, ...]] = {
        f"{at}.embeddings.cls_token": (1, 1, WIDTH),
        f"{at}.embeddings.position_embeddings": (1, 17 + distilled, WIDTH),
        f"{at}.embeddings.patch_embeddings.projection.weight": (WIDTH, 3, PATCH, PATCH),
        f"{at}.embeddings.patch_embeddings.projection.bias": (WIDTH,),
        f"{at}.layernorm.weight": (WIDTH,),
        f"{at}.layernorm.bias": (WIDTH,),
    }
    if distilled:
        shapes |= {f"{at}.embeddings.distillation_token": (1, 1, WIDTH)}
        shapes |= _linear("cls_classifier", WIDTH, CLASSES) | _linear(
            "distillation_classifier", WIDTH, CLASSES
        )
    else:
        shapes |= _linear("classifier", WIDTH, CLASSES)
    for layer in range(LAYERS):
        block = f"{at}.encoder.layer.{layer}"
        for part in ("query", "key", "value"):
            shapes |= _linear(f"{block}.attention.attention.{part}", WIDTH, WIDTH)
        shapes |= _linear(f"{block}.attention.output.dense", WIDTH, WIDTH)
        shapes |= _linear(f"{block}.intermediate.dense", WIDTH, MLP) | _linear(
            f"{block}.output.dense", MLP, WIDTH
        )
        for norm in ("layernorm_before", "layernorm_after"):
            shapes |= {f"{block}.{norm}.weight": (WIDTH,), f"{block}.{norm}.bias": (WIDTH,)}
    return _filled(shapes)


def _linear(at: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{at}.weight": (outputs, inputs), f"{at}.bias": (outputs,)}
