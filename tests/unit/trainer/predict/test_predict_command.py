"""trainer.predict: the original's logits in every layout of the file, pictures of any format, checkpoints, bundles and pairs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from serving.command import UserError
from tests.support.small_models import DIGITS, save_digits
from tools.dev import seeded
from trainer.description import Block, Mixer, ViT
from trainer.export.__main__ import main as export
from trainer.models.build import flatten, param_shapes
from trainer.predict.__main__ import main
from trainer.weights import published
from trainer.weights.load import load_weights

GOLDENS = Path(__file__).resolve().parents[3] / "golden" / "original"
SAME = 2e-5  # float32 sums in another order; measured 1.9e-6 with logits of deviation near 1


def _released(name: str) -> str:
    """Flax before Linen counted modules of all types together."""
    counted = {
        "LayerNorm_1": "LayerNorm_2",
        "MultiHeadDotProductAttention_0": "MultiHeadDotProductAttention_1",
    }
    for linen, before in {**counted, "MlpBlock_0": "MlpBlock_3"}.items():
        name = name.replace(linen, before)
    return name


LAYOUTS: dict[str, Callable[[str], str]] = {
    "linen": lambda name: name,
    "released": _released,
    "optimiser dump": lambda name: f"opt/target/{_released(name)}",
    "params": lambda name: f"params/{name}",
    "image tower": lambda name: f"params/img/{name}",
}


def golden(name: str) -> tuple[dict[str, np.ndarray], Any]:
    stored = np.load(GOLDENS / f"{name}.npz")
    return seeded.arrays(
        [(key, tuple(shape)) for key, shape in json.loads(str(stored["card"]))["spec"]]
    ), stored


@pytest.fixture(scope="module")
def ti16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ti16")
    np.savez(folder / "Ti_16.npz", **golden("ViT-Ti_16")[0])  # type: ignore[arg-type]
    np.save(folder / "x.npy", seeded.images(2, 224))
    return folder


@pytest.mark.parametrize(
    ("name", "layout"),
    [*(("R+ViT-Ti_16", layout) for layout in LAYOUTS), ("ViT-Ti_16", "linen"), ("ViT-Ti_16", "released")],
)
def test_logits_are_those_of_the_original_in_every_layout(name: str, layout: str, tmp_path: Path) -> None:
    leaves, stored = golden(name)
    np.savez(tmp_path / "w.npz", **{LAYOUTS[layout](key): leaf for key, leaf in leaves.items()})  # type: ignore[arg-type]
    np.save(tmp_path / "x.npy", seeded.images(2, 224))
    asked = {
        "model": name,
        "weights": tmp_path / "w.npz",
        "inputs": tmp_path / "x.npy",
        "logits": tmp_path / "out.npy",
    }
    main([f"--{flag}={value}" for flag, value in asked.items()])
    logits = np.load(tmp_path / "out.npy")
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, stored["logits"], atol=SAME)


@pytest.mark.parametrize("prefix", ["", "opt/target/", "params/", "params/img/", "img/"])
def test_a_mixer_is_read_below_every_prefix(prefix: str, tmp_path: Path) -> None:
    model = Mixer((32, 32), 3, 16, 32, 2, 8, 64, 10)
    # Of its own size: what is read is told by names and shapes, and refused by them as another size.
    places = published.places(model)
    shapes = {name: leaf.shape for name, leaf in flatten(param_shapes(model)).items()}
    leaves = {prefix + places[name].name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    np.savez(tmp_path / "w.npz", **leaves)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"width|shape"):
        load_weights(str(tmp_path / "w.npz"), "Mixer-B_16")


def _pair(tmp_path: Path) -> list[str]:
    leaves, stored = golden("LiT-L16Ti")
    np.savez(tmp_path / "w.npz", **leaves)  # type: ignore[arg-type]
    np.save(tmp_path / "x.npy", seeded.images(2, 224))
    np.save(tmp_path / "t.npy", stored["tokens"])
    return ["--model=LiT-L16Ti", f"--weights={tmp_path / 'w.npz'}"]


@pytest.mark.slow
def test_a_pair_makes_the_embeddings_of_the_original(tmp_path: Path) -> None:
    asked = [
        f"--inputs={tmp_path / 'x.npy'}",
        f"--tokens={tmp_path / 't.npy'}",
        f"--embeddings={tmp_path / 'e.npz'}",
    ]
    result = main([*_pair(tmp_path), *asked])
    made, (_, stored) = np.load(tmp_path / "e.npz"), golden("LiT-L16Ti")
    assert set(made.files) == {"zimg", "ztxt", "t"}
    for name in made.files:
        np.testing.assert_allclose(made[name], stored[name], atol=SAME)
    assert result["shapes"] == {"zimg": [2, 1024], "ztxt": [4, 1024], "t": [1]}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    save_digits(folder, ViT((8, 8), 1, 4, 16, (Block(2, 8, 8, 32),), 10, "gap"))
    return folder


@pytest.fixture(scope="module")
def bundle(own: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("models") / "small" / "1"
    export([f"--checkpoint={own}", f"--output={target}", "--threads=1"])
    return target


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "deeper").mkdir()
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.bmp", "c.tga", "deeper/d.pcx"):
        Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("no picture")
    return folder


def _predictions(result: dict[str, object]) -> list[dict[str, Any]]:
    found = result["predictions"]
    assert isinstance(found, list)
    return found


def test_files_and_folders_of_any_format_are_labelled(own: Path, pictures: Path) -> None:
    result = main([f"--weights={own}", f"--images={pictures / 'a.png'},{pictures}", "--top_k=3"])
    found = _predictions(result)
    names = [Path(one["input"]).name for one in found]
    assert names == ["a.png", "a.png", "b.bmp", "c.tga", "d.pcx"]
    assert found[0]["top"] == found[1]["top"]
    for one in found:
        assert [len(one["top"]), {top["label"] for top in one["top"]} <= set(DIGITS)] == [3, True]
        shares = [top["probability"] for top in one["top"]]
        assert shares == sorted(shares, reverse=True)
    assert result["preprocess"] is not None


def test_a_bundle_says_in_its_runtime_what_the_checkpoint_says(
    own: Path, bundle: Path, pictures: Path, tmp_path: Path
) -> None:
    for weights, out in ((own, "live.npy"), (bundle, "served.npy")):
        main([f"--weights={weights}", f"--logits={tmp_path / out}", str(pictures), "--batch=3"])
    np.testing.assert_allclose(np.load(tmp_path / "served.npy"), np.load(tmp_path / "live.npy"), atol=SAME)


def test_folders_for_the_answers_are_made(own: Path, pictures: Path, tmp_path: Path) -> None:
    main([f"--weights={own}", str(pictures / "a.png"), f"--logits={tmp_path / 'new' / 'deeper' / 'out.npy'}"])
    assert np.load(tmp_path / "new" / "deeper" / "out.npy").shape == (1, 10)


def test_weights_that_are_not_finite_are_named(ti16: Path, tmp_path: Path) -> None:
    leaves = dict(np.load(ti16 / "Ti_16.npz"))
    leaves["head/bias"] = np.full(1000, np.nan, np.float32)
    np.savez(tmp_path / "nan.npz", **leaves)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="array head/bias holds values that are not finite"):
        main(["--model=Ti_16", f"--weights={tmp_path / 'nan.npz'}", f"--inputs={ti16 / 'x.npy'}"])


def test_the_batch_changes_no_answer(own: Path, pictures: Path, tmp_path: Path) -> None:
    for batch in (1, 3, 32):
        main([f"--weights={own}", f"--logits={tmp_path / str(batch)}.npy", str(pictures), f"--batch={batch}"])
    one, three, all_at_once = (np.load(tmp_path / f"{batch}.npy") for batch in (1, 3, 32))
    np.testing.assert_allclose(one, all_at_once, atol=SAME)
    np.testing.assert_allclose(three, all_at_once, atol=SAME)


def test_a_published_head_says_the_names_of_its_classes(ti16: Path) -> None:
    result = main(
        ["--model=Ti/16", f"--weights={ti16 / 'Ti_16.npz'}", f"--inputs={ti16 / 'x.npy'}", "--top_k=1000"]
    )
    names = {top["index"]: top["label"] for top in _predictions(result)[0]["top"]}
    assert names[281] == "tabby, tabby cat"
    assert (result["family"], result["unused"]) == ("vit", [])


def test_inputs_of_another_resolution_resize_the_positions(ti16: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", seeded.images(1, 96))
    result = main(["--model=Ti/16", f"--weights={ti16 / 'Ti_16.npz'}", f"--inputs={tmp_path / 'x.npy'}"])
    (resized,) = result["resized"]  # type: ignore[misc]
    assert resized.startswith("pos")


def _save(path: Path, array: Any) -> Path:
    np.save(path, array)
    return path


def test_bad_input_is_refused_in_one_line(
    own: Path, bundle: Path, ti16: Path, pictures: Path, tmp_path: Path
) -> None:
    weights, x = f"--weights={own}", f"--inputs={ti16 / 'x.npy'}"
    ti = ["--model=Ti_16", f"--weights={ti16 / 'Ti_16.npz'}"]
    ints = _save(tmp_path / "ints.npy", np.zeros((1, 8, 8, 1), np.int32))
    flat = _save(tmp_path / "flat.npy", np.zeros((8, 8), np.float32))
    channels_first = _save(tmp_path / "first.npy", np.zeros((1, 3, 8, 8), np.float32))
    nan = _save(tmp_path / "nan.npy", np.full((1, 8, 8, 1), np.nan, np.float32))
    wide = _save(tmp_path / "wide.npy", np.zeros((1, 9, 8, 1), np.float32))
    (tmp_path / "empty").mkdir()
    for arguments, message in {
        (): "--weights is needed",
        (weights,): "--images, --inputs or --tokens is needed",
        (weights, x, "a.png"): "exclude each other",
        (*ti, "--tokens=t.npy", "--labels=cat"): "exclude each other",
        (weights, "--inputs=x.npz"): "must end in .npy",
        (weights, f"--inputs={tmp_path / 'none.npy'}"): "cannot be read",
        (weights, f"--inputs={ints}"): r"is int32 \(1, 8, 8, 1\); give floats",
        (weights, f"--inputs={flat}"): r"is float32 \(8, 8\)",
        (weights, f"--inputs={nan}"): "not finite",
        (weights, f"--inputs={channels_first}"): "channels first; give",
        (f"--weights={bundle}", f"--inputs={wide}"): r"images of \(9, 8, 1\), the model takes \(8, 8, 1\)",
        (f"--weights={bundle}", str(pictures), "--model=Ti_16"): "--model is for files of weights",
        (f"--weights={bundle}", str(pictures), "--sha256=00"): "--sha256 is for files of weights",
        (weights, str(tmp_path / "none.png")): "does not exist",
        (weights, str(tmp_path / "empty")): "holds no pictures",
        (weights, str(pictures / "notes.txt")): "notes.txt: the bytes",
        (
            weights,
            str(pictures),
            f"--logits={tmp_path / 'none.npy' / 'out.npy'}",
            "--embeddings=e.npz",
        ): "no text tower",
        (weights, str(pictures), "--labels=cat,dog"): "no text tower",
        (f"--weights={ti16 / 'Ti_16.npz'}", x): "does not say which model",
        ("--model=B_16", f"--weights={ti16 / 'Ti_16.npz'}", x): "shape",
        ("--model=R_Ti_16", f"--weights={ti16 / 'Ti_16.npz'}", x): "plain ViT",
        ("--model=ViT-digits", f"--weights={ti16 / 'Ti_16.npz'}", x): "averages its patches",
        (*ti, x, f"--sha256={'0' * 64}"): "SHA-256",
    }.items():
        with pytest.raises(UserError, match=message):
            main(list(arguments))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "empty",
        "first.npy",
        "flat.npy",
        "ints.npy",
        "nan.npy",
        "wide.npy",
    ]
