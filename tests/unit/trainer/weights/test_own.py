"""Our checkpoints and bundles come in by the same call, and can be asked for another resolution or head like any other."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import json_format, struct_pb2

from protos import bundle_pb2
from serving.bundle import spec_to_proto, write_bundle
from serving.command import UserError
from serving.preprocess import PreprocessSpec
from tests.support import published_files as files
from tests.support.small_models import (
    DIGITS,
    DIGITS_SPEC,
    SMALL,
    UNEVEN,
    random_params,
    save_digits,
    smooth_images,
)
from trainer import description
from trainer.checkpoint import weights_hash
from trainer.description import Classifier, ViT
from trainer.export.onnx_writer import write_onnx
from trainer.models.build import Params, bind, flatten
from trainer.weights.load import load_weights


def test_a_checkpoint_says_itself_what_it_is(tmp_path: Path) -> None:
    params = save_digits(tmp_path)
    weights = load_weights(str(tmp_path))
    assert (weights.description, weights.preprocess, weights.labels) == (SMALL, DIGITS_SPEC, DIGITS)
    assert (weights.family, weights.sha256) == ("checkpoint", weights_hash(params))
    ours, stored = flatten(weights.params), flatten(params)
    assert all(np.array_equal(ours[name], stored[name]) for name in stored)
    assert set(weights.report.loaded) == set(stored)


def test_a_checkpoint_can_get_another_size_and_head(tmp_path: Path) -> None:
    save_digits(tmp_path)
    weights = load_weights(str(tmp_path), image_size=(12, 8), head="reinit", num_classes=3)
    assert isinstance(weights.description, ViT)
    assert (weights.description.image_size, weights.description.num_classes) == ((12, 8), 3)
    assert weights.report.resized == ("pos (1, 4, 16) → (1, 6, 16)",)
    assert weights.preprocess is not None
    assert (weights.preprocess.height, weights.preprocess.width) == (12, 8)
    assert weights.labels == ()


def test_a_name_that_fits_the_checkpoint_is_taken(tmp_path: Path) -> None:
    model = files.SMALL["Toy"]
    assert isinstance(model, ViT)
    grey = dataclasses.replace(model, channels=1, image_size=(8, 8), gelu="erf")
    save_digits(tmp_path, grey)
    assert load_weights(str(tmp_path), "Toy").description == grey


def test_a_name_of_another_shape_is_refused(tmp_path: Path) -> None:
    save_digits(tmp_path, UNEVEN)
    with pytest.raises(UserError, match=r"holds another model than Toy: array blocks/0/.* expected is"):
        load_weights(str(tmp_path), "Toy")


def test_a_folder_has_no_single_digest(tmp_path: Path) -> None:
    save_digits(tmp_path)
    with pytest.raises(UserError, match="leave sha256 out"):
        load_weights(str(tmp_path), sha256="0" * 64)


def test_a_folder_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint under"):
        load_weights(str(tmp_path))


def bundle(folder: Path, model: Classifier, params: Params, precision: str = "fp32") -> Path:
    """A bundle of `model`, as far as taking its weights needs one."""
    color = "L" if model.channels == 1 else "RGB"
    grey = (127.5,) * model.channels
    spec = PreprocessSpec(color, *model.image_size, mean=grey, std=grey)
    target = folder / "toy" / "1"
    images = np.zeros((1, *model.image_size, model.channels), np.float32)
    manifest = bundle_pb2.Manifest(
        name="toy",
        description=json_format.ParseDict(description.to_json(model), struct_pb2.Struct()),
        preprocessing=spec_to_proto(spec),
        labels=[str(index) for index in range(model.num_outputs)],
        batch_buckets=[1],
        inputs=[bundle_pb2.TensorSpec(name="images", datatype="FP32", shape=[-1, *images.shape[1:]])],
        outputs=[bundle_pb2.TensorSpec(name="logits", datatype="FP32", shape=[-1, model.num_outputs])],
    )
    manifest.models.add(
        file="model.onnx",
        runtime="onnxruntime",
        precision=precision,
        tolerance=bundle_pb2.Tolerance(max_abs_difference=1e-3, min_top1_agreement=1.0),
    )
    outputs = {"logits": np.zeros((1, model.num_outputs), np.float32)}
    onnx = write_onnx(model, params).SerializeToString()
    write_bundle(target, manifest, {"model.onnx": onnx}, {"images": images}, outputs)
    return target


@pytest.mark.parametrize("name", ["digits", "Toy", "Toydeit-distilled", "Toymixer", "Toyhybrid"])
def test_the_weights_of_a_bundle_answer_as_those_it_was_made_of(tmp_path: Path, name: str) -> None:
    model = SMALL if name == "digits" else files.SMALL[name]
    params = random_params(model)  # type: ignore[arg-type]
    weights = load_weights(str(bundle(tmp_path, model, params)))  # type: ignore[arg-type]
    assert weights.description == model
    assert weights.preprocess is not None
    images = smooth_images(model, 4)  # type: ignore[arg-type]
    answers = [np.asarray(bind(model, leaves)(images)) for leaves in (params, weights.params)]  # type: ignore[call-overload]
    # float32; kernels of a stem are standardised twice, which their epsilon of 1e-5 changes by as much.
    np.testing.assert_allclose(*answers, atol=1e-3 if name == "Toyhybrid" else 1e-5)


def test_an_int8_bundle_has_no_weights_to_give(tmp_path: Path) -> None:
    target = bundle(tmp_path, SMALL, random_params(SMALL), precision="int8")
    with pytest.raises(UserError, match=r"holds a model of kind 'vit' in int8; .*give the checkpoint"):
        load_weights(str(target))
