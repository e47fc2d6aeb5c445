"""What goes out is what others read: an npz that came in goes out as it was, safetensors have timm's names and axes."""

import dataclasses
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from serving.command import UserError
from tests.support import published_files as files
from tests.support.small_models import random_params
from trainer.description import Block, ViT
from trainer.models.build import flatten
from trainer.weights.load import load_weights
from trainer.weights.save import departures, save_npz, save_safetensors

LINEN = files.vit_npz(linen=True)
LAYOUTS: dict[str, tuple[str, files.File]] = {
    "released": ("Toy", files.vit_npz()),
    "linen": ("Toy", LINEN),
    "stacked": ("Toy", files.stacked(LINEN)),
    "optimiser": ("Toy", files.below("opt/target/", files.vit_npz())),
    "big_vision": ("Toy", files.below("params/", files.positions_at_top(files.stacked(LINEN)))),
    "big_vision, averaging": (
        "Toy",
        files.below("params/", files.positions_at_top(files.vit_npz(has_class=False))),
    ),
    "image tower": ("Toy", files.below("params/img/", LINEN)),
    "no head": ("Toy", {name: array for name, array in LINEN.items() if not name.startswith("head")}),
    "bfloat16": ("Toy", {name: array.astype(ml_dtypes.bfloat16) for name, array in LINEN.items()}),
    "two precisions": ("Toy", LINEN | {"cls": LINEN["cls"].astype(np.float16)}),
    "hybrid": ("Toyhybrid", files.hybrid_npz()),
    "old norms": ("Toyhybrid", files.hybrid_npz(old_norms=True)),
    "stem alone": ("Toyroot", files.hybrid_npz(stages=())),
    "mixer": ("Toymixer", files.mixer_npz()),
    "pair": ("Toypair", files.pair_npz()),
    "pair with bert": ("Toypairbert", files.below("params/", files.pair_npz(bert=True))),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_npz_that_came_in_goes_out_as_it_was(tmp_path: Path, layout: str) -> None:
    model, file = LAYOUTS[layout]
    np.savez(tmp_path / "in.npz", **file)  # type: ignore[arg-type]
    weights = load_weights(str(tmp_path / "in.npz"), model)
    assert weights.layout is not None
    save_npz(tmp_path / "out.npz", weights.description, weights.params, weights.layout)
    with np.load(tmp_path / "in.npz") as came, np.load(tmp_path / "out.npz", allow_pickle=False) as went:
        assert set(came) == set(went)
        for name in came:
            assert (came[name].dtype, came[name].shape) == (went[name].dtype, went[name].shape), name
            assert came[name].tobytes() == went[name].tobytes(), name


def test_a_model_of_ours_goes_out_with_released_names(tmp_path: Path) -> None:
    model = files.SMALL["Toy"]
    assert isinstance(model, ViT)
    params = random_params(model)
    save_npz(tmp_path / "out.npz", model, params)
    with np.load(tmp_path / "out.npz") as went:
        assert {name: went[name].shape for name in went} == {
            name: array.shape for name, array in files.vit_npz().items()
        }
        attention = "Transformer/encoderblock_1/MultiHeadDotProductAttention_1/out/kernel"
        np.testing.assert_array_equal(went[attention], params["blocks"]["1"]["attention"]["out"]["kernel"])


def test_a_class_position_that_was_learned_here_goes_into_the_class_token(tmp_path: Path) -> None:
    """big_vision has no row for it; the sum is what the model sees."""
    np.savez(tmp_path / "in.npz", **files.positions_at_top(LINEN))  # type: ignore[arg-type]
    weights = load_weights(str(tmp_path / "in.npz"), "Toy")
    weights.params["pos"][:, 0] += 3
    assert weights.layout is not None
    save_npz(tmp_path / "out.npz", weights.description, weights.params, weights.layout)
    with np.load(tmp_path / "out.npz") as went:
        np.testing.assert_array_equal(went["cls"], LINEN["cls"] + 3)
        assert went["pos_embedding"].shape == (1, 16, files.WIDTH)


@pytest.mark.parametrize("name", ["Toy", "Toydeit-distilled", "Toymixer"])
def test_timms_file_goes_out_as_it_came_in(tmp_path: Path, name: str) -> None:
    file = files.timm(name)
    save_file(file, tmp_path / "in.safetensors")
    weights = load_weights(str(tmp_path / "in.safetensors"), name)
    save_safetensors(tmp_path / "out.safetensors", weights.description, weights.params)
    went = load_file(tmp_path / "out.safetensors")
    assert went.keys() == file.keys()
    for array in file:
        np.testing.assert_array_equal(went[array], file[array], err_msg=array)


@pytest.mark.parametrize("name", ["Toyhybrid", "Toyroot"])
def test_a_hybrid_goes_to_timm_and_back(tmp_path: Path, name: str) -> None:
    file = files.hybrid_npz(stages=() if name == "Toyroot" else (1, 2))
    np.savez(tmp_path / "in.npz", **file)  # type: ignore[arg-type]
    weights = load_weights(str(tmp_path / "in.npz"), name)
    save_safetensors(tmp_path / "out.safetensors", weights.description, weights.params)
    root = "patch_embed.backbone.conv" if name == "Toyroot" else "patch_embed.backbone.stem.conv"
    went = load_file(tmp_path / "out.safetensors")
    np.testing.assert_array_equal(went[f"{root}.weight"], file["conv_root/kernel"].transpose(3, 2, 0, 1))
    back = load_weights(str(tmp_path / "out.safetensors"), name)
    ours, theirs = flatten(weights.params), flatten(back.params)
    assert all(np.array_equal(ours[array], theirs[array]) for array in ours)
    assert isinstance(back.description, ViT)
    assert back.description.stem is not None
    assert (back.description.stem.kernel_eps, back.description.stem.kernel_eps_on) == (1e-8, "variance")


def _refused(folder: Path, write: Any, model: ViT) -> str:
    with pytest.raises(UserError) as caught:
        write(folder / "out", model, random_params(model))
    assert list(folder.iterdir()) == []
    return str(caught.value)


@pytest.mark.parametrize("write", [save_npz, save_safetensors])
def test_a_cut_model_is_refused_since_nobody_else_could_build_it(tmp_path: Path, write: Any) -> None:
    model = files.SMALL["Toy"]
    assert isinstance(model, ViT)
    for blocks in (
        (Block(1, 8, 8, 24), model.blocks[1]),
        (Block(1, 8, 8, 24),) * 2,
        (Block(2, 4, 8, 24),) * 2,
        tuple(dataclasses.replace(block, merge=1) for block in model.blocks),
    ):
        cut = dataclasses.replace(model, blocks=blocks)
        assert "the model was cut" in _refused(tmp_path, write, cut)


def test_a_second_token_has_no_name_in_the_published_npz(tmp_path: Path) -> None:
    model = files.SMALL["Toydeit-distilled"]
    assert isinstance(model, ViT)
    assert "the published npz has no name for array dist" in _refused(tmp_path, save_npz, model)


def test_arrays_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    model = files.SMALL["Toy"]
    assert isinstance(model, ViT)
    params = random_params(model)
    params["cls"] = params["cls"][..., 1:]
    with pytest.raises(UserError, match=r"array cls has shape \(1, 1, 15\)"):
        save_npz(tmp_path / "out.npz", model, params)


@pytest.mark.parametrize("write", [save_npz, save_safetensors])
def test_a_file_that_exists_is_not_touched(tmp_path: Path, write: Any) -> None:
    model = files.SMALL["Toy"]
    assert isinstance(model, ViT)
    (tmp_path / "out").write_text("precious")
    with pytest.raises(UserError, match="exists already"):
        write(tmp_path / "out", model, random_params(model))
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("out", "precious")]


def test_a_write_that_breaks_off_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array", full)
    model = files.SMALL["Toy"]
    assert isinstance(model, ViT)
    with pytest.raises(OSError, match="No space left"):
        save_npz(tmp_path / "out.npz", model, random_params(model))
    assert list(tmp_path.iterdir()) == []


def test_where_readers_compute_otherwise_is_said() -> None:
    model = files.SMALL["Toy"]
    assert departures(model, ".npz") == ()
    assert departures(model, ".safetensors") == ("timm has gelu erf, this model tanh",)
    hybrid = files.SMALL["Toyhybrid"]
    assert departures(hybrid, ".npz") == ()
    assert any(line.startswith("timm has stem") for line in departures(hybrid, ".safetensors"))
