"""Answers of google-research/vision_transformer's models on seeded weights: the golden files of tests/golden/original.

It runs in an environment of its own, from the root of the repository; TensorFlow, which the original imports for its
preprocessing and nothing here calls, is not needed:

    git clone https://github.com/google-research/vision_transformer DIR/vit     (commit c6de1e5)
    git clone https://github.com/google/flaxformer DIR/flaxformer               (commit 399ea3a)
    python3.11 -m venv DIR
    DIR/bin/pip install jax==0.10.2 flax==0.12.8 einops ml_collections
    DIR/bin/pip install --no-deps aqtp==0.9.0
    export PYTHONPATH=DIR/vit:DIR/flaxformer
    DIR/bin/python -m tools.dev.original_goldens              all of them: two minutes on two cores, 4 GB of memory
    DIR/bin/python -m tools.dev.original_goldens Mixer-B_16

A golden holds what the model says (`logits`; of a pair `zimg`, `ztxt` and `t`, the exponent of the raw parameter, with the
`tokens` that it read) and `card`, a JSON text of
  size       pixels of the two seeded images, square
  spec       [name, shape] of every parameter, "/"-joined
  versions   of what answered
tests/unit/trainer/test_parity.py reads them.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from tools.dev import seeded

_IMAGES, _TEXTS, _LENGTH, _CLASSES = 2, 4, 16, 1000
# Imported by the original and by aqtp, and called by nothing here; they would import TensorFlow.
_UNUSED = ("vit_jax.checkpoint", "vit_jax.preprocess", "tensorflow.compiler.xla.service")
# Whole models; those without a name here differ from one of them by sizes only.
_PUBLISHED = (
    "ViT-Ti_16",
    "R+ViT-Ti_16",
    "R26+ViT-S_32",
    "R50+ViT-B_16",
    "Mixer-B_16",
    "LiT-B16B",
    "LiT-L16Ti",
)


@dataclasses.dataclass(frozen=True)
class Case:
    """A model, ready to be called with images (and tokens), and what it reads."""

    model: Any  # a Linen module
    size: int
    vocabulary: int = 0
    setting: AbstractContextManager[Any] | None = None  # in force while the model is called


def _published(name: str) -> Callable[[], Case]:
    def build() -> Case:
        from vit_jax import models

        if name.startswith("LiT"):
            bert = "B16B" in name
            return Case(models.get_model(name), 224, 30_522 if bert else 16_000)
        return Case(models.get_model(name, num_classes=_CLASSES), 224)

    return build


def _encoder(mlp_dim: int) -> dict[str, Any]:
    return {
        "num_layers": 2,
        "num_heads": 2,
        "mlp_dim": mlp_dim,
        "dropout_rate": 0.0,
        "attention_dropout_rate": 0.0,
    }


def _image_tower(width: int, **more: Any) -> Any:
    import ml_collections

    tower = {"patches": {"size": (16, 16)}, "hidden_size": width, "classifier": "token", **more}
    return ml_collections.ConfigDict({**tower, "transformer": _encoder(2 * width)})


def _small_hybrid() -> Case:
    """Sides that no stride divides, so that every padding is uneven."""
    from vit_jax import models_vit

    resnet = {"num_layers": (1, 2), "width_factor": 0.5}
    tower = _image_tower(24, patches={"size": (2, 2)}, resnet=resnet)
    return Case(models_vit.VisionTransformer(num_classes=10, **tower), 50)


def _small_mixer() -> Case:
    from vit_jax import models_mixer

    patches = _image_tower(24, patches={"size": (8, 8)}).patches
    sizes = {"num_blocks": 2, "hidden_dim": 24, "tokens_mlp_dim": 12, "channels_mlp_dim": 48}
    return Case(models_mixer.MlpMixer(patches=patches, num_classes=10, **sizes), 32)


def _small_lit(text_model: str, text: dict[str, Any], out_dim: tuple[int | None, int]) -> Case:
    import ml_collections
    from vit_jax import models_lit

    model = models_lit.LitModel(
        image=_image_tower(32),
        text_model=text_model,
        text=ml_collections.ConfigDict(text),
        pp=ml_collections.ConfigDict(),
        out_dim=out_dim,
        model_name="small",
    )
    return Case(model, 32, 100)


def _small_lit_transformer() -> Case:
    text = {"width": 16, "num_layers": 2, "mlp_dim": 32, "num_heads": 2, "vocab_size": 100}
    return _small_lit("text_transformer", text, (None, 32))


def _small_lit_bert() -> Case:
    from flaxformer.architectures.bert import configs

    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 100, "max_length": 20}
    small = dataclasses.replace(configs.BertBaseConfig(), hidden_size=16, intermediate_dim=32, **sizes)
    case = _small_lit("bert", {"config": "base"}, (40, 40))
    # The original knows two sizes of BERT, by name.
    return dataclasses.replace(case, setting=mock.patch.object(configs, "BertBaseConfig", return_value=small))


_CASES: dict[str, Callable[[], Case]] = {
    "small-hybrid": _small_hybrid,
    "small-mixer": _small_mixer,
    "small-lit-transformer": _small_lit_transformer,
    "small-lit-bert": _small_lit_bert,
    **{name: _published(name) for name in _PUBLISHED},
}


def main() -> None:
    """Makes the goldens that are named on the command line, or all of them."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.dev.original_goldens",
        description=__doc__,
        epilog="names: " + ", ".join(_CASES),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="which goldens to make; all when none is named"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("tests/golden/original"), help="folder (default: %(default)s)"
    )
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - _CASES.keys():
        parser.error(f"unknown {', '.join(sorted(unknown))}; --help lists the names")
    sys.modules.update({name: mock.MagicMock() for name in _UNUSED})
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.names or _CASES:
        began = time.monotonic()
        case = _CASES[name]()
        with case.setting or nullcontext():
            golden = _golden(case)
        np.savez_compressed(arguments.out / f"{name}.npz", **golden)  # type: ignore[arg-type]
        print(f"{name}: {', '.join(golden)}, {time.monotonic() - began:.0f} s", flush=True)


def _golden(case: Case) -> dict[str, np.ndarray]:
    import jax
    from flax import traverse_util

    images = seeded.images(_IMAGES, case.size)
    tokens = _texts(case.vocabulary) if case.vocabulary else None
    inputs = ((images,), {"train": False}) if tokens is None else ((), {"images": images, "tokens": tokens})
    arguments, keywords = inputs
    shapes = jax.eval_shape(lambda: case.model.init(jax.random.key(0), *arguments, **keywords))["params"]
    leaves = traverse_util.flatten_dict(shapes, sep="/")
    spec = [(name, tuple(leaf.shape)) for name, leaf in leaves.items()]
    params = traverse_util.unflatten_dict(seeded.arrays(spec), sep="/")
    said = case.model.apply({"params": params}, *arguments, **keywords)
    if tokens is None:
        answers = {"logits": said}
    else:
        answers = {"zimg": said[0], "ztxt": said[1], "t": said[2]["t"], "tokens": tokens}
    versions = {package: importlib.metadata.version(package) for package in ("jax", "flax", "numpy")}
    card = {"size": case.size, "spec": spec, "versions": versions}
    return {
        "card": np.asarray(json.dumps(card)),
        **{name: np.asarray(value) for name, value in answers.items()},
    }


def _texts(vocabulary: int) -> np.ndarray:
    """Texts that are ever shorter; the last one begins with padding too, where there ought to be [CLS]."""
    tokens = seeded.texts(_TEXTS, _LENGTH, vocabulary)
    tokens[-1, 0] = 0
    return tokens


if __name__ == "__main__":
    main()
