"""safetensors with timm's and transformers' names come in, with the formulas and pictures of their libraries."""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from serving.command import UserError
from tests.support import published_files as files
from trainer.description import Mixer, ViT
from trainer.models.build import check_params, flatten
from trainer.weights.load import Weights, load_weights

D, N, K = files.WIDTH, files.HEADS, files.WIDTH // files.HEADS


def load(
    folder: Path, file: files.File, model: str = "Toy", beside: dict[str, Any] | None = None, **wanted: Any
) -> Weights:
    save_file(file, folder / "model.safetensors")
    for name, value in (beside or {}).items():
        (folder / name).write_text(json.dumps(value))
    weights = load_weights(str(folder / "model.safetensors"), model, **wanted)
    check_params(weights.description, weights.params, "what was loaded")
    return weights


def test_timms_fused_projection_is_split_into_heads(tmp_path: Path) -> None:
    file = files.timm()
    leaves = flatten(load(tmp_path, file).params)
    fused, bias = file["blocks.1.attn.qkv.weight"], file["blocks.1.attn.qkv.bias"]
    for index, part in enumerate(("query", "key", "value")):
        own = fused[index * D : (index + 1) * D]
        np.testing.assert_array_equal(leaves[f"blocks/1/attention/{part}/kernel"], own.T.reshape(D, N, K))
        np.testing.assert_array_equal(
            leaves[f"blocks/1/attention/{part}/bias"].ravel(), bias[index * D : (index + 1) * D]
        )
    out = file["blocks.1.attn.proj.weight"]
    np.testing.assert_array_equal(leaves["blocks/1/attention/out/kernel"].reshape(D, D), out.T)


def test_timms_other_arrays_are_transposed_to_ours(tmp_path: Path) -> None:
    file = files.timm()
    leaves = flatten(load(tmp_path, file).params)
    np.testing.assert_array_equal(
        leaves["patch/kernel"], file["patch_embed.proj.weight"].transpose(2, 3, 1, 0)
    )
    np.testing.assert_array_equal(leaves["blocks/0/mlp/fc1/kernel"], file["blocks.0.mlp.fc1.weight"].T)
    np.testing.assert_array_equal(leaves["head/kernel"], file["head.weight"].T)
    np.testing.assert_array_equal(leaves["norm/scale"], file["norm.weight"])
    np.testing.assert_array_equal(leaves["pos"], file["pos_embed"])


def test_a_timm_vit_is_computed_and_fed_as_timm_does(tmp_path: Path) -> None:
    weights = load(tmp_path, files.timm())
    assert isinstance(weights.description, ViT)
    assert (weights.description.gelu, weights.description.norm_eps) == ("erf", 1e-6)
    spec = weights.preprocess
    assert spec is not None
    assert (spec.resize, spec.method, spec.antialias, spec.crop_fraction) == ("crop", "bicubic", True, 0.9)


def test_timm_takes_the_whole_picture_at_384_pixels(tmp_path: Path) -> None:
    spec = load(tmp_path, files.timm(), image_size=(384, 384)).preprocess
    assert spec is not None
    assert spec.crop_fraction == 1.0


def test_a_deit_of_timm_has_two_tokens_two_heads_and_imagenets_colours(tmp_path: Path) -> None:
    file = files.timm("Toydeit-distilled")
    weights = load(tmp_path, file, "Toydeit-distilled")
    leaves = flatten(weights.params)
    np.testing.assert_array_equal(leaves["dist"], file["dist_token"])
    np.testing.assert_array_equal(leaves["head_dist/kernel"], file["head_dist.weight"].T)
    assert weights.description.image_size == (16, 16)  # type: ignore[union-attr]
    spec = weights.preprocess
    assert spec is not None
    assert (spec.mean, spec.std) == ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
    assert spec.crop_fraction == 0.875


def test_both_heads_of_a_deit_are_made_anew(tmp_path: Path) -> None:
    weights = load(
        tmp_path, files.timm("Toydeit-distilled"), "Toydeit-distilled", head="reinit", num_classes=3
    )
    assert weights.params["head"]["bias"].shape == weights.params["head_dist"]["bias"].shape == (3,)


def test_a_mixer_of_timm_comes_in(tmp_path: Path) -> None:
    file = files.timm("Toymixer")
    weights = load(tmp_path, file, "Toymixer")
    assert isinstance(weights.description, Mixer)
    assert weights.description.gelu == "erf"
    np.testing.assert_array_equal(
        flatten(weights.params)["blocks/1/tokens/fc1/kernel"], file["blocks.1.mlp_tokens.fc1.weight"].T
    )


def test_transformers_vit_comes_in_with_its_epsilon(tmp_path: Path) -> None:
    file = files.hugging_face()
    weights = load(tmp_path, file)
    leaves = flatten(weights.params)
    layer = "vit.encoder.layer.1"
    query = file[f"{layer}.attention.attention.query.weight"]
    np.testing.assert_array_equal(leaves["blocks/1/attention/query/kernel"], query.T.reshape(D, N, K))
    np.testing.assert_array_equal(leaves["blocks/1/norm1/scale"], file[f"{layer}.layernorm_before.weight"])
    np.testing.assert_array_equal(leaves["blocks/1/mlp/fc2/kernel"], file[f"{layer}.output.dense.weight"].T)
    np.testing.assert_array_equal(leaves["head/bias"], file["classifier.bias"])
    assert isinstance(weights.description, ViT)
    assert (weights.description.gelu, weights.description.norm_eps) == ("erf", 1e-12)
    assert weights.preprocess is not None
    assert weights.preprocess.resize == "squash"


def test_transformers_deit_comes_in_with_both_classifiers(tmp_path: Path) -> None:
    file = files.hugging_face(distilled=True)
    leaves = flatten(load(tmp_path, file, "Toydeit-distilled").params)
    np.testing.assert_array_equal(leaves["dist"], file["deit.embeddings.distillation_token"])
    np.testing.assert_array_equal(leaves["head/kernel"], file["cls_classifier.weight"].T)
    np.testing.assert_array_equal(leaves["head_dist/kernel"], file["distillation_classifier.weight"].T)


def test_the_files_beside_it_give_formulas_labels_and_preprocessing(tmp_path: Path) -> None:
    names = [f"animal {index}" for index in range(files.CLASSES)]
    beside = {
        "config.json": {
            "hidden_act": "gelu_new",
            "layer_norm_eps": 1e-5,
            "id2label": {str(index): name for index, name in enumerate(names)},
        },
        "preprocessor_config.json": {
            "do_center_crop": True,
            "size": {"shortest_edge": 20},
            "crop_size": {"height": 16, "width": 16},
            "resample": 3,
            "image_mean": [0.4, 0.5, 0.6],
            "image_std": [0.2, 0.2, 0.2],
        },
    }
    weights = load(tmp_path, files.hugging_face(), beside=beside)
    assert weights.labels == tuple(names)
    assert isinstance(weights.description, ViT)
    assert (weights.description.gelu, weights.description.norm_eps) == ("tanh", 1e-5)
    spec = weights.preprocess
    assert spec is not None
    assert (spec.resize, spec.method, spec.crop_fraction, spec.mean) == (
        "crop",
        "bicubic",
        0.8,
        (102, 127.5, 153),
    )


def test_a_new_head_has_no_labels(tmp_path: Path) -> None:
    beside = {"config.json": {"id2label": {str(index): f"animal {index}" for index in range(files.CLASSES)}}}
    assert load(tmp_path, files.hugging_face(), beside=beside, head="reinit").labels == ()


def test_labels_that_nobody_wrote_are_none(tmp_path: Path) -> None:
    beside = {"config.json": {"id2label": {str(index): f"LABEL_{index}" for index in range(files.CLASSES)}}}
    assert load(tmp_path, files.hugging_face(), beside=beside).labels == ()


def test_timms_config_names_the_model_and_the_preprocessing(tmp_path: Path) -> None:
    said = {
        "mean": [0, 0, 0],
        "std": [1, 1, 1],
        "interpolation": "bilinear",
        "crop_pct": 0.95,
        "crop_mode": "center",
    }
    beside = {"config.json": {"architecture": "toy", "pretrained_cfg": said}}
    spec = load(tmp_path, files.timm(), "", beside).preprocess
    assert spec is not None
    assert (spec.mean, spec.std, spec.method, spec.crop_fraction) == ((0,) * 3, (255,) * 3, "bilinear", 0.95)


def test_a_folder_with_model_safetensors_is_enough(tmp_path: Path) -> None:
    load(tmp_path, files.timm())
    assert load_weights(str(tmp_path), "Toy").family == "timm-vit"


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_precisions_become_float32(tmp_path: Path, dtype: Any) -> None:
    file = {name: array.astype(dtype) for name, array in files.timm().items()}
    leaves = flatten(load(tmp_path, file).params)
    np.testing.assert_array_equal(leaves["cls"], file["cls_token"].astype(np.float32))
    assert leaves["cls"].dtype == np.float32


def test_the_pooler_of_transformers_is_set_aside(tmp_path: Path) -> None:
    file = files.hugging_face() | {"vit.pooler.dense.bias": np.ones(D, np.float32)}
    assert load(tmp_path, file).report.unused == (f"vit.pooler.dense.bias ({D},): no layer of the model",)


def test_a_norm_after_averaging_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"normalises after it averages .*fc_norm=False"):
        load(tmp_path, files.timm() | {"fc_norm.weight": np.ones(D, np.float32)})


def test_an_activation_that_we_lack_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="hidden_act is 'relu'"):
        load(tmp_path, files.hugging_face(), beside={"config.json": {"hidden_act": "relu"}})


def test_layer_scale_is_an_extra_array_and_not_overlooked(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"has blocks\.0\.ls1\.gamma of shape \(16,\), expected is no such array"
    ):
        load(tmp_path, files.timm() | {"blocks.0.ls1.gamma": np.ones(D, np.float32)})
