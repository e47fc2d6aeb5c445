"""What is wrong with a file is one line that names it; there is never half a model."""

import hashlib
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from serving.command import UserError
from tests.support import published_files as files
from trainer.weights.archive import open_archive
from trainer.weights.load import load_weights

BLOCK = "Transformer/encoderblock_1"
FC1 = f"{BLOCK}/MlpBlock_3/Dense_0/kernel"


def refused(folder: Path, file: files.File, model: str = "Toy", **wanted: Any) -> str:
    path = folder / "weights.npz"
    np.savez(path, **file)  # type: ignore[arg-type]
    return refusal(path, model, **wanted)


def refusal(path: Path | str, model: str = "Toy", **wanted: Any) -> str:
    with pytest.raises(UserError) as caught:
        load_weights(str(path), model, **wanted)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_missing_array_is_named_with_the_shape_that_is_expected(tmp_path: Path) -> None:
    file = files.vit_npz()
    del file[FC1]
    message = refused(tmp_path, file)
    assert f"lacks array {FC1} of shape (16, 24)" in message
    assert "weights.npz" in message


def test_of_many_missing_arrays_the_first_are_named_and_the_rest_counted(tmp_path: Path) -> None:
    file = {name: array for name, array in files.vit_npz().items() if not name.startswith(BLOCK)}
    assert "and 13 more" in refused(tmp_path, file)


def test_an_extra_array_is_named_with_its_shape(tmp_path: Path) -> None:
    message = refused(tmp_path, files.vit_npz() | {"cls_2": np.ones((1, 5), np.float32)})
    assert "has cls_2 of shape (1, 5), expected is no such array" in message


def test_a_misshapen_array_is_named_with_both_shapes(tmp_path: Path) -> None:
    message = refused(
        tmp_path, files.vit_npz() | {FC1: np.ones((16, 23), np.float32)}, allow=["missing", "unused"]
    )
    assert f"array {FC1} has shape (16, 23), expected is (16, 24)" in message


def test_stacked_layers_of_another_depth_are_misshapen(tmp_path: Path) -> None:
    file = files.stacked(files.vit_npz())
    deeper = {
        name: np.concatenate([one, one[:1]]) if "encoderblock/" in name else one for name, one in file.items()
    }
    assert "has shape (3, 2, 8), expected is (2, 2, 8)" in refused(tmp_path, deeper)


@pytest.mark.parametrize(
    ("file", "model", "held", "asked"),
    [
        (files.vit_npz(), "Toymixer", "holds a plain ViT", "Toymixer is an MLP-Mixer"),
        (files.mixer_npz(), "Toy", "holds an MLP-Mixer", "Toy is a plain ViT"),
        (files.hybrid_npz(), "Toy", "holds a hybrid with a ResNet stem", "Toy is a plain ViT"),
        (files.vit_npz(), "Toyhybrid", "holds a plain ViT", "Toyhybrid is a hybrid"),
        (files.vit_npz(), "Toypair", "holds a plain ViT", "Toypair is a LiT pair of towers"),
        (files.vit_npz(), "Toydeit-distilled", "holds a plain ViT", "is a DeiT with a distillation token"),
    ],
)
def test_a_wrong_family_is_said_with_both(
    tmp_path: Path, file: files.File, model: str, held: str, asked: str
) -> None:
    message = refused(tmp_path, file, model)
    assert held in message
    assert asked in message


def test_a_distilled_file_is_no_plain_deit(tmp_path: Path) -> None:
    save_file(files.timm("Toydeit-distilled"), tmp_path / "a.safetensors")
    assert "holds a DeiT with a distillation token" in refusal(tmp_path / "a.safetensors", "Toydeit")


def test_arrays_of_nobody_we_know_are_refused(tmp_path: Path) -> None:
    message = refused(tmp_path, {"encoder.weight": np.ones(3, np.float32)})
    assert "of no family that is read" in message
    assert "encoder.weight" in message


def test_attention_pooling_is_refused(tmp_path: Path) -> None:
    file = files.vit_npz(has_class=False) | {"MAPHead_0/probe": np.ones((1, 1, 16), np.float32)}
    assert "pools by attention (MAPHead_0/probe)" in refused(tmp_path, file)


def test_a_grid_that_is_no_square_is_refused(tmp_path: Path) -> None:
    file = files.vit_npz()
    file["Transformer/posembed_input/pos_embedding"] = np.ones((1, 15, 16), np.float32)
    assert "positions of shape (1, 15, 16) have 14 patches, which are no square grid" in refused(
        tmp_path, file
    )


def test_positions_that_are_no_table_are_refused(tmp_path: Path) -> None:
    file = files.vit_npz() | {"Transformer/posembed_input/pos_embedding": np.ones((17, 16), np.float32)}
    assert "expected is (1, tokens, width)" in refused(tmp_path, file)


def test_a_digest_that_differs_is_shown_with_the_one_asked_for(tmp_path: Path) -> None:
    np.savez(tmp_path / "weights.npz", **files.vit_npz())  # type: ignore[arg-type]
    digest = hashlib.sha256((tmp_path / "weights.npz").read_bytes()).hexdigest()
    message = refusal(tmp_path / "weights.npz", sha256="0" * 64)
    assert f"has the SHA-256 {digest}, asked for is {'0' * 64}" in message


def test_a_digest_that_cannot_be_one_is_refused_before_anything_is_read() -> None:
    assert "64 hexadecimal digits" in refusal("nowhere.npz", sha256="abc")


def test_a_truncated_npz_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "weights.npz"
    np.savez(path, **files.vit_npz())  # type: ignore[arg-type]
    path.write_bytes(path.read_bytes()[:-500])
    assert "is a damaged npz" in refusal(path)


def test_one_changed_byte_of_an_npz_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "weights.npz"
    np.savez(path, **files.vit_npz())  # type: ignore[arg-type]
    content = bytearray(path.read_bytes())
    content[content.index(files.vit_npz()["embedding/kernel"].tobytes()) + 100] ^= 1
    path.write_bytes(content)
    assert "is a damaged npz: Bad CRC-32" in refusal(path)


def test_a_member_longer_than_its_header_says_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "weights.npz"
    file = files.vit_npz()
    np.savez(path, **{name: array for name, array in file.items() if name != "cls"})  # type: ignore[arg-type]
    np.save(tmp_path / "cls.npy", file["cls"])
    with zipfile.ZipFile(path, "a") as members:
        members.writestr("cls.npy", (tmp_path / "cls.npy").read_bytes() + b"more")
    assert "array cls is longer than its header says" in refusal(path)


def test_a_zip_of_other_things_is_damaged(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as members:
        members.writestr("readme.txt", "no arrays here")
    assert "is a damaged npz" in refusal(tmp_path / "a.zip")


def test_a_mistake_of_ours_is_not_called_damage(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **files.vit_npz())  # type: ignore[arg-type]
    with pytest.raises(KeyError), open_archive(tmp_path / "a.npz", "a.npz"):
        raise KeyError("ours")


def test_a_truncated_safetensors_file_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(files.timm(), path)
    path.write_bytes(path.read_bytes()[:-100])
    assert "is a damaged safetensors file" in refusal(path)


def test_a_header_larger_than_the_file_is_damage(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(struct.pack("<Q", 10**6) + b"{}")
    assert "is a damaged safetensors file" in refusal(tmp_path / "a")


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html>", pickle.dumps({"a": 1})])
def test_what_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "weights.npz").write_bytes(content)
    assert "is no npz and no safetensors file" in refusal(tmp_path / "weights.npz")


def test_a_pytorch_file_is_never_unpickled(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "weights.pth", "w") as members:
        members.writestr("archive/data.pkl", b"cos\nsystem\n")
    assert "save its state_dict as safetensors" in refusal(tmp_path / "weights.pth")


def test_pickled_objects_within_an_npz_are_refused(tmp_path: Path) -> None:
    message = refused(tmp_path, files.vit_npz() | {"extra": np.array([{}], object)})
    assert "array extra holds pickled objects" in message


def test_integers_are_no_weights(tmp_path: Path) -> None:
    file = files.vit_npz()
    assert "array cls is int8" in refused(tmp_path, file | {"cls": file["cls"].astype(np.int8)})


def test_a_file_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "weights.npz")


def test_a_file_without_a_models_name_asks_for_it(tmp_path: Path) -> None:
    assert "does not say which model it is of" in refused(tmp_path, files.vit_npz(), "")


def test_more_classes_than_the_head_has_are_refused(tmp_path: Path) -> None:
    assert "a head of 10 classes, asked for are 3" in refused(tmp_path, files.vit_npz(), num_classes=3)


def test_a_new_head_for_no_classes_is_refused(tmp_path: Path) -> None:
    file = {name: array for name, array in files.vit_npz().items() if not name.startswith("head")}
    assert "so head=reinit needs num_classes" in refused(tmp_path, file, head="reinit")


def test_a_pair_has_no_head_to_replace(tmp_path: Path) -> None:
    assert "is no classifier" in refused(tmp_path, files.pair_npz(), "Toypair", head="remove")


def test_a_mixer_cannot_be_resized(tmp_path: Path) -> None:
    message = refused(tmp_path, files.mixer_npz(), "Toymixer", image_size=(32, 32))
    assert "tie to 16 patches" in message
    assert "has 64" in message


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"allow": ["everything"]}, "allow has everything; it takes missing, unused, resized"),
        ({"head": "new"}, "head 'new' must be one of keep, reinit, remove"),
        ({"head": "remove", "num_classes": 3}, "classes are 1 or more, and need a head"),
        ({"image_size": (0, 16)}, "is no size"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(wanted: dict[str, Any], said: str) -> None:
    assert said in refusal("nowhere.npz", **wanted)
