"""The published npz comes in, whatever its layout; what must come out is written down from the file's own arrays."""

import dataclasses
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tests.support import published_files as files
from trainer.description import Mixer, TwoTowers, ViT
from trainer.models.build import check_params, flatten
from trainer.weights.load import Weights, load_weights


def load(folder: Path, file: files.File, model: str = "Toy", **wanted: Any) -> Weights:
    path = folder / "weights.npz"
    np.savez(path, **file)  # type: ignore[arg-type]
    weights = load_weights(str(path), model, **wanted)
    check_params(weights.description, weights.params, "what was loaded")
    assert all(leaf.dtype == np.float32 for leaf in flatten(weights.params).values())
    return weights


def same(left: Weights, right: Weights) -> bool:
    ours, theirs = flatten(left.params), flatten(right.params)
    return ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_every_array_of_a_released_vit_lies_where_its_name_says(tmp_path: Path) -> None:
    file = files.vit_npz()
    leaves = flatten(load(tmp_path, file).params)
    block = "Transformer/encoderblock_1"
    expected = {
        "patch/kernel": "embedding/kernel",
        "cls": "cls",
        "pos": "Transformer/posembed_input/pos_embedding",
        "blocks/1/norm1/scale": f"{block}/LayerNorm_0/scale",
        "blocks/1/attention/query/kernel": f"{block}/MultiHeadDotProductAttention_1/query/kernel",
        "blocks/1/attention/value/bias": f"{block}/MultiHeadDotProductAttention_1/value/bias",
        "blocks/1/attention/out/kernel": f"{block}/MultiHeadDotProductAttention_1/out/kernel",
        "blocks/1/norm2/bias": f"{block}/LayerNorm_2/bias",
        "blocks/1/mlp/fc1/kernel": f"{block}/MlpBlock_3/Dense_0/kernel",
        "blocks/1/mlp/fc2/bias": f"{block}/MlpBlock_3/Dense_1/bias",
        "norm/scale": "Transformer/encoder_norm/scale",
        "head/kernel": "head/kernel",
    }
    for ours, theirs in expected.items():
        np.testing.assert_array_equal(leaves[ours], file[theirs], err_msg=ours)
    assert len(leaves) == len(file)


PREFIXES = ("", "opt/target/", "params/", "params/img/")


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("linen", [False, True], ids=["released", "linen"])
@pytest.mark.parametrize("scan", [False, True], ids=["layers", "stacked"])
def test_all_namings_and_prefixes_hold_the_same_model(
    tmp_path: Path, prefix: str, linen: bool, scan: bool
) -> None:
    file = files.vit_npz(linen=linen)
    laid_out = files.below(prefix, files.stacked(file) if scan else file)
    assert same(load(tmp_path, laid_out), load(tmp_path, files.vit_npz()))


def test_an_optimiser_that_was_saved_too_is_reported_and_no_error(tmp_path: Path) -> None:
    file = files.below("opt/target/", files.vit_npz()) | {"opt/state/step": np.array(7)}
    assert load(tmp_path, file).report.unused == ("opt/state/step (): not below opt/target/",)


def test_a_model_without_class_token_averages(tmp_path: Path) -> None:
    model = load(tmp_path, files.vit_npz(has_class=False)).description
    assert isinstance(model, ViT)
    assert (model.pooling, model.image_size) == ("gap", (16, 16))


def test_positions_without_a_class_row_get_one_of_zeros(tmp_path: Path) -> None:
    """big_vision puts the class token in front after positions are added, so its own position is nothing."""
    file = files.positions_at_top(files.vit_npz(linen=True))
    pos = flatten(load(tmp_path, file).params)["pos"]
    assert pos.shape == (1, 17, files.WIDTH)
    assert not pos[:, 0].any()
    np.testing.assert_array_equal(pos[:, 1:], file["pos_embedding"])


def test_positions_at_the_top_with_a_class_row_keep_it(tmp_path: Path) -> None:
    file = files.vit_npz(linen=True)
    file["pos_embedding"] = file.pop("Transformer/posembed_input/pos_embedding")
    np.testing.assert_array_equal(flatten(load(tmp_path, file).params)["pos"], file["pos_embedding"])


def test_bfloat16_that_numpy_kept_as_void_is_read_as_numbers(tmp_path: Path) -> None:
    file = files.vit_npz()
    narrow = {name: array.astype(ml_dtypes.bfloat16) for name, array in file.items()}
    void = {name: array.view(np.dtype("V2")) for name, array in narrow.items()}
    leaves = flatten(load(tmp_path, void).params)
    np.testing.assert_array_equal(leaves["patch/kernel"], narrow["embedding/kernel"].astype(np.float32))


@pytest.mark.parametrize("old_norms", [False, True], ids=["norms (C)", "norms (1, 1, 1, C)"])
def test_a_hybrid_comes_in_with_its_stem_and_the_size_behind_it(tmp_path: Path, old_norms: bool) -> None:
    file = files.hybrid_npz(old_norms=old_norms)
    weights = load(tmp_path, file, "Toyhybrid")
    leaves = flatten(weights.params)
    assert isinstance(weights.description, ViT)
    assert weights.description.image_size == (64, 64)
    np.testing.assert_array_equal(
        leaves["stem/stages/1/0/proj/kernel"], file["block2/unit1/conv_proj/kernel"]
    )
    np.testing.assert_array_equal(
        leaves["stem/stages/1/1/conv3_norm/bias"], file["block2/unit2/gn3/bias"].ravel()
    )
    np.testing.assert_array_equal(leaves["stem/root_norm/scale"], file["gn_root/scale"].ravel())


def test_a_stem_without_stages_shrinks_by_four(tmp_path: Path) -> None:
    model = load(tmp_path, files.hybrid_npz(stages=()), "Toyroot").description
    assert isinstance(model, ViT)
    assert model.image_size == (64, 64)


def test_a_mixer_takes_its_size_from_its_token_mlps(tmp_path: Path) -> None:
    file = files.mixer_npz()
    weights = load(tmp_path, file, "Toymixer")
    assert isinstance(weights.description, Mixer)
    assert weights.description.image_size == (16, 16)
    leaves = flatten(weights.params)
    np.testing.assert_array_equal(
        leaves["blocks/1/tokens/fc2/kernel"], file["MixerBlock_1/token_mixing/Dense_1/kernel"]
    )
    np.testing.assert_array_equal(
        leaves["blocks/0/channels/fc1/bias"], file["MixerBlock_0/channel_mixing/Dense_0/bias"]
    )
    np.testing.assert_array_equal(leaves["norm/scale"], file["pre_head_layer_norm/scale"])


@pytest.mark.parametrize("prefix", ["", "params/"])
def test_a_pair_comes_in_with_both_towers_and_its_temperature(tmp_path: Path, prefix: str) -> None:
    file = files.pair_npz()
    weights = load(tmp_path, files.below(prefix, file), "Toypair")
    leaves = flatten(weights.params)
    assert isinstance(weights.description, TwoTowers)
    assert weights.preprocess is not None
    assert weights.preprocess.rounding == "down"
    np.testing.assert_array_equal(leaves["text/token"], file["txt/Embed_0/embedding"])
    np.testing.assert_array_equal(leaves["text/pos"], file["txt/pos_embedding"])
    fc2 = "txt/Encoder_0/encoderblock_1/MlpBlock_0/Dense_1/kernel"
    np.testing.assert_array_equal(leaves["text/blocks/1/mlp/fc2/kernel"], file[fc2])
    np.testing.assert_array_equal(leaves["image/cls"], file["img/cls"])
    np.testing.assert_array_equal(leaves["t"], [2.5])


def test_a_pair_with_bert_splits_its_matrices_into_heads(tmp_path: Path) -> None:
    file = files.pair_npz(bert=True)
    leaves = flatten(load(tmp_path, file, "Toypairbert").params)
    layer = "txt/BertEncoder_0/encoder_block/layer_sequence/layers_1"
    query, out = leaves["text/blocks/1/attention/query/kernel"], leaves["text/blocks/1/attention/out/kernel"]
    np.testing.assert_array_equal(
        query.reshape(files.WIDTH, -1), file[f"{layer}/attention_block/attention_layer/query/kernel"]
    )
    np.testing.assert_array_equal(
        out.reshape(-1, files.WIDTH), file[f"{layer}/attention_block/dense_layer/kernel"]
    )
    np.testing.assert_array_equal(
        leaves["text/pos"][0], file["txt/BertEncoder_0/embedder/embedders_position_ids/embedding"]
    )
    np.testing.assert_array_equal(leaves["text/blocks/0/norm2/scale"].shape, (files.WIDTH,))


def test_the_image_tower_of_a_pair_can_be_taken_alone(tmp_path: Path) -> None:
    weights = load(tmp_path, files.pair_npz(bert=True), "Toy")
    assert isinstance(weights.description, ViT)
    assert "t (1,): not below img/" in weights.report.unused


def test_the_head_is_kept_with_the_classes_of_the_file(tmp_path: Path) -> None:
    weights = load(tmp_path, files.vit_npz(classes=7))
    assert weights.description.num_outputs == 7  # type: ignore[union-attr]
    assert "head/kernel" in weights.report.loaded


def test_a_new_head_is_zero_and_reported(tmp_path: Path) -> None:
    weights = load(tmp_path, files.vit_npz(), head="reinit", num_classes=3)
    assert not weights.params["head"]["kernel"].any()
    assert weights.params["head"]["kernel"].shape == (files.WIDTH, 3)
    assert weights.report.created == ("head/bias (3,): zeros", f"head/kernel ({files.WIDTH}, 3): zeros")


def test_a_removed_head_is_not_there(tmp_path: Path) -> None:
    weights = load(tmp_path, files.vit_npz(), head="remove")
    assert "head" not in weights.params
    assert weights.description.num_classes == 0  # type: ignore[union-attr]


def test_a_head_of_zeros_is_remarked_upon(tmp_path: Path) -> None:
    file = files.vit_npz()
    file["head/kernel"][:] = 0
    assert "all zeros" in load(tmp_path, file).report.summary()
    assert not load(tmp_path, file, head="reinit").report.remarks


def test_pre_logits_are_dropped_with_a_word_on_the_head_behind_them(tmp_path: Path) -> None:
    file = files.vit_npz() | {
        "pre_logits/kernel": np.ones((16, 16), np.float32),
        "pre_logits/bias": np.ones(16, np.float32),
    }
    report = load(tmp_path, file).report
    assert [name.split(" ")[0] for name in report.unused] == ["pre_logits/kernel", "pre_logits/bias"]
    assert "train the head anew" in report.summary()


def test_another_resolution_resizes_positions_and_nothing_else(tmp_path: Path) -> None:
    weights = load(tmp_path, files.vit_npz(), image_size=(24, 32))
    assert weights.report.resized == ("pos (1, 17, 16) → (1, 49, 16)",)
    assert weights.description.image_size == (24, 32)  # type: ignore[union-attr]
    assert weights.preprocess is not None
    assert (weights.preprocess.height, weights.preprocess.width) == (24, 32)
    assert "pos" not in weights.report.loaded


def test_the_same_resolution_resizes_nothing(tmp_path: Path) -> None:
    assert load(tmp_path, files.vit_npz(), image_size=(16, 16)).report.resized == ()


def test_a_missing_array_is_made_fresh_where_that_is_allowed(tmp_path: Path) -> None:
    file = files.vit_npz()
    del file["Transformer/encoderblock_0/MlpBlock_3/Dense_0/kernel"]
    weights = load(tmp_path, file, allow=["missing"], seed=3)
    assert weights.report.created == ("blocks/0/mlp/fc1/kernel (16, 24): fresh",)
    assert weights.params["blocks"]["0"]["mlp"]["fc1"]["kernel"].std() > 0.1
    again = load(tmp_path, file, allow=["missing"], seed=3)
    assert same(weights, again)


def test_an_extra_array_is_left_out_where_that_is_allowed(tmp_path: Path) -> None:
    file = files.vit_npz() | {"ema/decay": np.ones(3, np.float32)}
    assert load(tmp_path, file, allow=["unused"]).report.unused == ("ema/decay of shape (3,)",)


def test_the_original_preprocessing_squashes_without_antialias(tmp_path: Path) -> None:
    spec = load(tmp_path, files.vit_npz()).preprocess
    assert spec is not None
    said = dataclasses.asdict(spec)
    assert said["mean"] == said["std"] == (127.5, 127.5, 127.5)
    assert (spec.resize, spec.method, spec.antialias, spec.rounding) == (
        "squash",
        "bilinear",
        False,
        "nearest",
    )


def test_the_digest_of_the_file_is_in_the_result(tmp_path: Path) -> None:
    import hashlib

    weights = load(tmp_path, files.vit_npz())
    digest = hashlib.sha256((tmp_path / "weights.npz").read_bytes()).hexdigest()
    assert weights.sha256 == digest
    assert same(weights, load(tmp_path, files.vit_npz(), sha256=digest.upper()))


def test_a_compressed_npz_reads_the_same(tmp_path: Path) -> None:
    path = tmp_path / "packed.npz"
    np.savez_compressed(path, **files.stacked(files.vit_npz()))  # type: ignore[arg-type]
    assert same(load_weights(str(path), "Toy"), load(tmp_path, files.vit_npz()))
