"""Our models and loaders against timm and Hugging Face transformers, on weights that are made from names alone.

The goldens are answers of those libraries, which are not needed here: see tools/dev/torch_goldens.py.
"""

import dataclasses
import json
import re
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load_file, save_file

from tools.dev import seeded
from trainer.description import Model, TextTower, ViT, uniform, variant_names
from trainer.models.build import Params, bind, check_params, flatten, unflatten
from trainer.weights.load import Weights, load_weights
from trainer.weights.save import save_safetensors

FOLDER = Path(__file__).resolve().parents[3] / "golden" / "torch"
# Theirs, of deviation 0.4 to 1, in float64, against ours in float32. Measured: at most 4e-6, and 6e-5 behind the deepest ResNet
# stem, where torch's own float32 is 1e-4 away. The tanh GELU makes 5e-4 and more, the original's epsilons behind a stem 1.8e-4.
SAME, SAME_BEHIND_A_STEM = 2e-5, 1.5e-4
QUICK = (
    "timm-ViT-Ti_16",
    "timm-R+ViT-Ti_16",
    "timm-DeiT-Ti_16-distilled",
    "transformers-ViT-Ti_16",
    "transformers-DeiT-Ti_16-distilled",
)
# Here, not in the test: tests of this folder add small models to the names. LiT's image towers are ViTs.
PUBLISHED = {name for name in variant_names() if not name.startswith(("LiT", "ViT-digits", "ViT-fashion"))}


@dataclasses.dataclass(frozen=True)
class Golden:
    """One file of tests/golden/torch."""

    card: dict[str, Any]
    logits: np.ndarray

    @property
    def spec(self) -> seeded.Spec:
        return [(name, tuple(shape)) for name, shape in self.card["spec"]]

    def weights(self, folder: Path) -> Weights:
        """The seeded weights as a file of their layout would give them to a user."""
        layout = self.card["layout"]
        path = folder / ("seeded.safetensors" if layout == "safetensors" else "seeded.npz")
        if layout == "safetensors":
            save_file(seeded.arrays(self.spec), path)
        else:
            seeded.write_npz(path, self.spec, layout)
        loaded = load_weights(str(path), model=self.card["variant"])
        path.unlink()  # ViT-H's has 2.5 GB
        return loaded

    def as_computed(self, model: Model) -> Model:
        """`model` with the conventions of the library that answered."""
        fields = dict(self.card["conventions"])
        if "stem" in fields:
            assert isinstance(model, ViT)
            assert model.stem is not None
            fields["stem"] = dataclasses.replace(model.stem, **fields["stem"])
        return dataclasses.replace(model, **fields)


def golden(name: str) -> Golden:
    with np.load(FOLDER / f"{name}.npz") as stored:
        return Golden(json.loads(str(stored["card"])), stored["logits"])


def _answers(model: Model, params: Params, inputs: npt.NDArray[Any]) -> np.ndarray:
    return np.asarray(jax.jit(lambda params, inputs: bind(model, params)(inputs))(params, inputs))


NAMES = sorted(path.stem for path in FOLDER.glob("*.npz") if "BERT" not in path.name)
MODELS = [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in NAMES]


@pytest.mark.parametrize("name", MODELS)
def test_a_loaded_file_answers_as_in_the_library_that_reads_it_too(name: str, tmp_path: Path) -> None:
    reference = golden(name)
    weights = reference.weights(tmp_path)
    model = reference.as_computed(weights.description)
    if reference.card["layout"] == "safetensors":
        # Only an npz comes from the original code; these names say themselves by whose formulas they are computed.
        assert weights.description == model

    answers = _answers(model, weights.params, seeded.images(2, 224))

    same = SAME_BEHIND_A_STEM if re.search(r"R\d+\+", name) else SAME
    assert np.abs(answers - reference.logits).max() < same


@pytest.mark.parametrize("name", [model for model in MODELS if str(model.values[0]).startswith("timm")])
def test_what_is_written_with_timms_names_is_timms_state_dict_bit_for_bit(name: str, tmp_path: Path) -> None:
    reference = golden(name)
    weights, path = reference.weights(tmp_path), tmp_path / "written.safetensors"
    save_safetensors(path, weights.description, weights.params)

    written = {key: [list(leaf.shape), zlib.crc32(leaf.tobytes())] for key, leaf in load_file(path).items()}
    # Of an npz, these are the arrays that timm's own reader of npz makes.
    assert written == {key: rest for key, *rest in reference.card["state"]}

    again = load_weights(str(path), model=reference.card["variant"])
    path.unlink()
    assert again.description == reference.as_computed(weights.description)
    ours, theirs = flatten(weights.params), flatten(again.params)
    assert ours.keys() == theirs.keys()
    assert [key for key, leaf in ours.items() if not np.array_equal(leaf, theirs[key])] == []


def test_every_published_image_model_is_compared_with_timm() -> None:
    assert {golden(name).card["variant"] for name in NAMES if name.startswith("timm")} == PUBLISHED


# What transformers calls a module of BERT; `{i}` is the layer.
_BERT = {
    "attention/query": "attention.self.query",
    "attention/key": "attention.self.key",
    "attention/value": "attention.self.value",
    "attention/out": "attention.output.dense",
    "norm1": "attention.output.LayerNorm",
    "mlp/fc1": "intermediate.dense",
    "mlp/fc2": "output.dense",
    "norm2": "output.LayerNorm",
}


def _bert_params(model: TextTower, theirs: dict[str, np.ndarray]) -> Params:
    D, block = model.width, model.blocks[0]
    tables = ("token", "word"), ("pos", "position"), ("segment", "token_type")
    found = {ours: theirs[f"embeddings.{name}_embeddings.weight"] for ours, name in tables}
    found["pos"] = found["pos"][None]
    modules = {"embed_norm": "embeddings.LayerNorm"}
    for i in range(len(model.blocks)):
        modules |= {f"blocks/{i}/{ours}": f"encoder.layer.{i}.{name}" for ours, name in _BERT.items()}
    for ours, name in modules.items():
        kernel, bias = theirs[f"{name}.weight"], theirs[f"{name}.bias"]
        heads = (block.num_heads, block.qk_dim)
        if "norm" in ours:
            found[f"{ours}/scale"] = kernel
        elif ours.endswith(("query", "key", "value")):
            found[f"{ours}/kernel"], bias = kernel.T.reshape(D, *heads), bias.reshape(heads)
        else:
            found[f"{ours}/kernel"] = kernel.T.reshape(*heads, D) if ours.endswith("out") else kernel.T
        found[f"{ours}/bias"] = bias
    return unflatten(found)


def test_a_text_tower_of_bert_answers_as_transformers_where_texts_are_padded() -> None:
    reference = golden("transformers-BERT")
    sizes = reference.card["options"]
    heads, width = sizes["num_attention_heads"], sizes["hidden_size"]
    blocks = uniform(sizes["num_hidden_layers"], heads, width // heads, sizes["intermediate_size"])
    positions = sizes["max_position_embeddings"]
    tower = TextTower("bert", sizes["vocab_size"], positions, 16, width, blocks, 0)
    model = reference.as_computed(tower)
    assert isinstance(model, TextTower)
    params = _bert_params(model, seeded.arrays(reference.spec))
    check_params(model, params, "the golden")

    tokens = seeded.texts(3, 16, model.vocab_size)
    assert (tokens == 0).sum() == 3 + 6  # there is padding to be hidden
    answers = _answers(model, params, tokens)
    assert np.abs(answers - reference.logits).max() < SAME
