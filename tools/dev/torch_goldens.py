"""Answers of timm's and Hugging Face transformers' models on seeded weights: the golden files of tests/golden/torch.

It runs in an environment of its own (6 GB, most of it CUDA that is not used; a CPU build of torch does as well), from the root of
the repository:

    python3.11 -m venv DIR
    DIR/bin/pip install torch==2.15.0 torchvision==0.29.2 timm==1.0.31 transformers==5.24.0
    DIR/bin/python -m tools.dev.torch_goldens            all of them: 20 minutes on two cores, 6 GB of memory for ViT-H_14
    DIR/bin/python -m tools.dev.torch_goldens timm-ViT-Ti_16 timm-DeiT-Ti_16

Nothing is downloaded. Weights are made from the names that a published file of the model would have, written in the format of that
file, and read by the reference's own loader; so a golden proves our loader and our model at once. A golden holds `logits` (of two
seeded images; of BERT, the first token of the last hidden state), computed in float64 from float32 weights, so that a difference
is the rounding of the other side alone; and `card`, a JSON text of
  source, architecture, options   what was built
  variant                         our name of it
  layout                          format of the seeded file: npz, bigvision, bigvision-scan (npz below params/), or safetensors
  spec                            [name, shape] of every array in that file (before stacking, for bigvision-scan)
  conventions                     fields of our description in which the reference differs from the published implementation
  state                           [name, shape, CRC32] of timm's state_dict, filled from that file
  versions                        of what answered
tests/unit/trainer/weights/test_torch_goldens.py reads them.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tools.dev import seeded

_IMAGES, _SIZE, _CLASSES = 2, 224, 1000


@dataclasses.dataclass(frozen=True)
class Case:
    """One golden: `variant` is our name, `architecture` the reference's."""

    source: str  # timm or transformers
    variant: str
    architecture: str
    layout: str = "npz"
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    # Old files keep GroupNorm's scale and bias as (1, 1, 1, C).
    old_norms: bool = False

    @property
    def name(self) -> str:
        layout = f"-{self.layout}" if self.layout.startswith("bigvision") else ""
        return f"{self.source}-{self.variant}{layout}"


# timm normalises after averaging unless told otherwise; the published models normalise every token.
_GAP = {"class_token": False, "global_pool": "avg", "fc_norm": False}
_PUBLISHED = {
    "ViT-Ti_16": "vit_tiny_patch16_224",
    "ViT-S_16": "vit_small_patch16_224",
    "ViT-S_32": "vit_small_patch32_224",
    "ViT-B_8": "vit_base_patch8_224",
    "ViT-B_16": "vit_base_patch16_224",
    "ViT-B_32": "vit_base_patch32_224",
    "ViT-L_16": "vit_large_patch16_224",
    "ViT-L_32": "vit_large_patch32_224",
    "ViT-H_14": "vit_huge_patch14_224",
}
_AVERAGED = {
    "ViT-S_16-gap-norep": "vit_small_patch16_224",
    "ViT-S_32-gap-norep": "vit_small_patch32_224",
    "ViT-B_16-gap-norep": "vit_base_patch16_224",
    "ViT-B_32-gap-norep": "vit_base_patch32_224",
}
_HYBRID = {
    "R+ViT-Ti_16": "vit_tiny_r_s16_p8_224",
    "R26+ViT-S_32": "vit_small_r26_s32_224",
    "R26+ViT-B_32": "vit_base_r26_s32_224",
    "R50+ViT-B_16": "vit_base_r50_s16_224",
    "R50+ViT-L_32": "vit_large_r50_s32_224",
}
# timm reads these from state dicts only.
_STATE_DICT = {
    "DeiT-Ti_16": "deit_tiny_patch16_224",
    "DeiT-S_16": "deit_small_patch16_224",
    "DeiT-B_16": "deit_base_patch16_224",
    "DeiT-Ti_16-distilled": "deit_tiny_distilled_patch16_224",
    "DeiT-S_16-distilled": "deit_small_distilled_patch16_224",
    "DeiT-B_16-distilled": "deit_base_distilled_patch16_224",
    "Mixer-B_16": "mixer_b16_224",
    "Mixer-B_32": "mixer_b32_224",
    "Mixer-L_16": "mixer_l16_224",
}


def _vit_config(width: int, heads: int) -> dict[str, Any]:
    sizes = {"hidden_size": width, "num_attention_heads": heads, "intermediate_size": 4 * width}
    return {**sizes, "num_hidden_layers": 12, "num_labels": _CLASSES}


_BERT = {
    "vocab_size": 1000,
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 512,
    "max_position_embeddings": 32,
}


def _cases() -> Iterator[Case]:
    for variant, architecture in _PUBLISHED.items():
        yield Case("timm", variant, architecture)
    for variant, architecture in _AVERAGED.items():
        yield Case("timm", variant, architecture, options=_GAP)
    for layout in ("bigvision", "bigvision-scan"):
        yield Case("timm", "ViT-S_32-gap-norep", _AVERAGED["ViT-S_32-gap-norep"], layout, _GAP)
    for variant, architecture in _HYBRID.items():
        yield Case("timm", variant, architecture, old_norms=variant in ("R26+ViT-S_32", "R50+ViT-B_16"))
    for variant, architecture in _STATE_DICT.items():
        yield Case("timm", variant, architecture, "safetensors")
    hugging = {
        ("ViT-Ti_16", "ViTForImageClassification"): _vit_config(192, 3),
        ("ViT-B_16", "ViTForImageClassification"): _vit_config(768, 12),
        ("DeiT-Ti_16-distilled", "DeiTForImageClassificationWithTeacher"): _vit_config(192, 3),
        ("BERT", "BertModel"): _BERT,
    }
    for (variant, architecture), config in hugging.items():
        yield Case("transformers", variant, architecture, "safetensors", config)


def main() -> None:
    """Makes the goldens that are named on the command line, or all of them."""
    cases = {case.name: case for case in _cases()}
    parser = argparse.ArgumentParser(
        prog="python -m tools.dev.torch_goldens",
        description=__doc__,
        epilog="names: " + ", ".join(cases),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="which goldens to make; all when none is named"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("tests/golden/torch"), help="folder (default: %(default)s)"
    )
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - cases.keys():
        parser.error(f"unknown {', '.join(sorted(unknown))}; --help lists the names")
    for name in arguments.names or cases:
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            case = cases[name]
            golden = (_timm if case.source == "timm" else _transformers)(case, Path(folder))
        _write(arguments.out / f"{name}.npz", case, *golden)
        print(
            f"{name}: logits of deviation {golden[1].std():.2f}, {time.monotonic() - began:.0f} s", flush=True
        )


Golden = tuple[dict[str, Any], np.ndarray]  # what the card says beside the case; logits


def _write(path: Path, case: Case, facts: dict[str, Any], logits: np.ndarray) -> None:
    packages = ("torch", "timm", "transformers", "numpy")
    versions = {package: importlib.metadata.version(package) for package in packages}
    card = {**dataclasses.asdict(case), **facts, "versions": versions}
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, card=np.asarray(json.dumps(card)), logits=logits.astype(np.float32))


def _timm(case: Case, folder: Path) -> Golden:
    """timm's model, its weights read from the seeded file by timm."""
    import timm
    import torch

    model = timm.create_model(
        case.architecture, pretrained=False, num_classes=_CLASSES, **case.options
    ).eval()
    if case.layout == "safetensors":
        spec = [(name, tuple(leaf.shape)) for name, leaf in model.state_dict().items()]
        model.load_state_dict({name: torch.from_numpy(leaf) for name, leaf in seeded.arrays(spec).items()})
    else:
        spec = _published_spec(model, case)
        seeded.write_npz(folder / "seeded.npz", spec, case.layout)
        model.load_pretrained(str(folder / "seeded.npz"))
    state = [
        (name, tuple(leaf.shape), zlib.crc32(leaf.contiguous().numpy().tobytes()))
        for name, leaf in model.state_dict().items()
    ]
    with torch.inference_mode():
        logits = model.double()(_pixels()).numpy()
    return {"spec": spec, "state": state, "conventions": _conventions(model)}, logits


def _pixels() -> Any:
    """The seeded images (B, C, H, W), in float64."""
    import torch

    return torch.from_numpy(seeded.images(_IMAGES, _SIZE)).permute(0, 3, 1, 2).double()


def _conventions(model: Any) -> dict[str, Any]:
    """What the modules of a timm model say of themselves."""
    from torch import nn

    (approximate,) = {part.approximate for part in model.modules() if isinstance(part, nn.GELU)}
    (norm_eps,) = {part.eps for part in model.modules() if isinstance(part, nn.LayerNorm)}
    said: dict[str, Any] = {"gelu": "erf" if approximate == "none" else approximate, "norm_eps": norm_eps}
    backbone = getattr(getattr(model, "patch_embed", None), "backbone", None)
    if backbone is not None:
        (group_eps,) = {part.eps for part in backbone.modules() if isinstance(part, nn.GroupNorm)}
        (kernel_eps,) = {part.eps for part in backbone.modules() if isinstance(part, nn.Conv2d)}
        # Its standardisation is a batch norm of the kernel, which adds its epsilon to the variance.
        said["stem"] = {"norm_eps": group_eps, "kernel_eps": kernel_eps, "kernel_eps_on": "variance"}
    return said


def _published_spec(model: Any, case: Case) -> seeded.Spec:
    """Names and shapes of the npz from which timm can fill `model`; written down anew, and judged by timm's loader."""
    bigvision = case.layout.startswith("bigvision")
    D, tokens = model.embed_dim, model.pos_embed.shape[1]
    spec: seeded.Spec = [] if model.cls_token is None else [("cls", (1, 1, D))]
    spec += _stem_spec(model, case) + _affine("embedding", _hwio(model.patch_embed.proj), D)
    spec.append(
        ("pos_embedding" if bigvision else "Transformer/posembed_input/pos_embedding", (1, tokens, D))
    )
    # Released files count all modules of a block together, big_vision those of each kind.
    attention, mlp, norm2 = (0, 0, 1) if bigvision else (1, 3, 2)
    for index, block in enumerate(model.blocks):
        N, F = block.attn.num_heads, block.mlp.fc1.out_features
        at, K = f"Transformer/encoderblock_{index}", D // block.attn.num_heads
        heads = f"{at}/MultiHeadDotProductAttention_{attention}"
        for part in ("query", "key", "value"):
            spec += [(f"{heads}/{part}/kernel", (D, N, K)), (f"{heads}/{part}/bias", (N, K))]
        spec += [(f"{heads}/out/kernel", (N, K, D)), (f"{heads}/out/bias", (D,))]
        spec += _norm(f"{at}/LayerNorm_0", (D,)) + _norm(f"{at}/LayerNorm_{norm2}", (D,))
        spec += _affine(f"{at}/MlpBlock_{mlp}/Dense_0", (D, F), F) + _affine(
            f"{at}/MlpBlock_{mlp}/Dense_1", (F, D), D
        )
    spec += _norm("Transformer/encoder_norm", (D,)) + _affine("head", (D, _CLASSES), _CLASSES)
    # timm's loader does not say what it leaves unread or unfilled.
    named, held = (
        sum(int(np.prod(shape)) for _, shape in spec),
        sum(leaf.numel() for leaf in model.parameters()),
    )
    assert named == held, f"{case.name}: the file has {named} numbers, the model {held}"
    return spec


def _stem_spec(model: Any, case: Case) -> seeded.Spec:
    backbone = getattr(model.patch_embed, "backbone", None)
    if backbone is None:
        return []
    root = getattr(backbone, "stem", backbone)
    parts = [("conv_root", "gn_root", root.conv)]
    for i, stage in enumerate(getattr(backbone, "stages", ()), start=1):
        for j, unit in enumerate(stage.blocks, start=1):
            at = f"block{i}/unit{j}"
            parts += [(f"{at}/conv{r}", f"{at}/gn{r}", getattr(unit, f"conv{r}")) for r in (1, 2, 3)]
            if unit.downsample is not None:
                parts.append((f"{at}/conv_proj", f"{at}/gn_proj", unit.downsample.conv))
    spec: seeded.Spec = []
    for kernel, norm, convolution in parts:
        channels = convolution.out_channels
        spec.append((f"{kernel}/kernel", _hwio(convolution)))
        spec += _norm(norm, (1, 1, 1, channels) if case.old_norms else (channels,))
    return spec


def _hwio(convolution: Any) -> tuple[int, ...]:
    outputs, inputs, height, width = convolution.weight.shape
    return height, width, inputs, outputs


def _affine(name: str, kernel: tuple[int, ...], outputs: int) -> seeded.Spec:
    return [(f"{name}/kernel", kernel), (f"{name}/bias", (outputs,))]


def _norm(name: str, shape: tuple[int, ...]) -> seeded.Spec:
    return [(f"{name}/scale", shape), (f"{name}/bias", shape)]


def _transformers(case: Case, folder: Path) -> Golden:
    """The transformers model, read back from a file that has the names under which it saves itself, and seeded arrays."""
    import transformers
    from safetensors.numpy import load_file, save_file

    built: Any = getattr(transformers, case.architecture)
    options = {"add_pooling_layer": False} if case.architecture == "BertModel" else {}
    config = built.config_class(**case.options)
    built(config, **options).save_pretrained(folder)
    path = folder / "model.safetensors"
    spec = [(name, leaf.shape) for name, leaf in load_file(path).items()]
    save_file(seeded.arrays(spec), path, metadata={"format": "pt"})
    model = built.from_pretrained(folder, attn_implementation="eager", **options).eval()
    # "gelu" is the exact one there.
    gelu = {"gelu": "erf", "gelu_new": "tanh"}[config.hidden_act]
    conventions = {"gelu": gelu, "norm_eps": config.layer_norm_eps}
    return {"spec": spec, "conventions": conventions}, _answer(model.double(), config)


def _answer(model: Any, config: Any) -> np.ndarray:
    import torch

    with torch.inference_mode():
        if config.model_type == "bert":
            tokens = torch.from_numpy(seeded.texts(3, 16, config.vocab_size).astype(np.int64))
            return model(tokens, attention_mask=tokens != 0).last_hidden_state[:, 0].numpy()
        return model(_pixels()).logits.numpy()


if __name__ == "__main__":
    main()
