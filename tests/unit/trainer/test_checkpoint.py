"""Checkpoints: what was saved comes back, chosen arrays alone, and whatever is damaged is refused in one line."""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from serving.command import UserError
from tests.support.small_models import DIGITS, DIGITS_SPEC, UNEVEN, random_params
from trainer import checkpoint
from trainer.checkpoint import Card, TrainCheckpoints, stored
from trainer.guard import nothing_seen
from trainer.models.build import Params, flatten, unflatten
from trainer.step import TrainState

META = {"stage": "trained", "dataset": "digits", "config_text": "seed = 0\n", "teacher_hash": ""}
CARD = Card(UNEVEN, DIGITS_SPEC, DIGITS, META)
PARAMS = random_params(UNEVEN)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model; tests that damage it take a copy."""
    path = tmp_path_factory.mktemp("checkpoint") / "model"
    checkpoint.save_model(path, CARD, PARAMS, step=7)
    return path


@pytest.fixture
def saved(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "model"))


def assert_equal(one: Params, other: Params) -> None:
    assert flatten(one).keys() == flatten(other).keys()
    for name, array in flatten(one).items():
        assert array.dtype == flatten(other)[name].dtype
        assert np.array_equal(array, flatten(other)[name]), name


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_saved_model_comes_back_as_it_was(pristine: Path) -> None:
    loaded = checkpoint.load(pristine)
    assert (loaded.description, loaded.preprocess, loaded.labels) == (UNEVEN, DIGITS_SPEC, DIGITS)
    weights = {"step": 7, "weights_hash": checkpoint.weights_hash(PARAMS)}
    assert loaded.meta == {**META, **weights}
    assert_equal(loaded.params, PARAMS)
    assert all(isinstance(array, np.ndarray) for array in jax.tree.leaves(loaded.params))


def test_the_card_alone_says_the_same(pristine: Path) -> None:
    assert checkpoint.load_card(pristine) == dataclasses.replace(CARD, meta={**META, "step": 7})


@pytest.mark.parametrize("part", ["", "checkpoints", "checkpoints/7"])
def test_a_checkpoint_is_found_from_its_workdir_its_folder_and_its_step(pristine: Path, part: str) -> None:
    assert checkpoint.load_card(str(pristine / part)).meta["step"] == 7


def test_chosen_arrays_come_alone(pristine: Path) -> None:
    chosen = ["head/kernel", "blocks/3/mlp/fc1/bias"]
    loaded = checkpoint.load(pristine, chosen)
    assert_equal(loaded.params, unflatten({name: flatten(PARAMS)[name] for name in chosen}))


def test_chosen_arrays_come_without_the_others_being_read(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    really_open = stored._open
    monkeypatch.setattr(stored, "_open", lambda *asked: opened.append(asked[1]) or really_open(*asked))
    checkpoint.load(saved, ["head/bias"])
    assert opened == ["head/bias"]


def test_an_unknown_array_is_refused_by_name(pristine: Path) -> None:
    with pytest.raises(UserError, match=r"array tail/bias .*has no such array"):
        checkpoint.load(pristine, ["tail/bias"])


@pytest.mark.parametrize("part", ["", "nowhere", "file"])
def test_a_path_without_a_checkpoint_is_refused(tmp_path: Path, part: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="no checkpoint under"):
        checkpoint.load(tmp_path / part)


def test_a_second_model_is_refused_and_the_first_stays(saved: Path) -> None:
    before = files(saved)
    with pytest.raises(UserError, match="already holds a checkpoint"):
        checkpoint.save_model(saved, CARD, jax.tree.map(np.zeros_like, PARAMS), step=8)
    assert files(saved) == before


def test_what_a_save_left_half_written_is_no_checkpoint(tmp_path: Path, pristine: Path) -> None:
    shutil.copytree(pristine / "checkpoints/7", tmp_path / "checkpoints/9.orbax-checkpoint-tmp-3")
    shutil.copytree(pristine / "checkpoints/7/params", tmp_path / "checkpoints/8/params")
    assert checkpoint.steps(tmp_path) == []
    shutil.copytree(pristine / "checkpoints/7", tmp_path / "checkpoints/7")
    assert checkpoint.steps(tmp_path) == [7]


def _metadata(saved: Path) -> Path:
    return saved / "checkpoints/7/meta/metadata"


@pytest.mark.parametrize("kept", [0, 1, 50, -2])
def test_a_truncated_card_is_refused(saved: Path, kept: int) -> None:
    _metadata(saved).write_bytes(_metadata(saved).read_bytes()[:kept])
    with pytest.raises(UserError, match="checkpoints/7 cannot be read"):
        checkpoint.load_card(saved)


@pytest.mark.parametrize(
    "change",
    [
        {"description": None},
        {"description": "vit"},
        {"preprocess": None},
        {"preprocess": {"color": "L", "blur": 3, "mean": [0.0], "std": [1.0]}},
        {"labels": None},
    ],
)
def test_a_card_whose_fields_do_not_fit_is_refused(saved: Path, change: dict[str, object]) -> None:
    value = {**json.loads(_metadata(saved).read_text()), **change}
    _metadata(saved).write_text(
        json.dumps({name: field for name, field in value.items() if field is not None})
    )
    with pytest.raises(UserError, match=r"cannot be read|damaged"):
        checkpoint.load_card(saved)


def _array_files(saved: Path) -> Iterator[Path]:
    found = (path for path in (saved / "checkpoints/7/params").rglob("*") if path.is_file())
    return (path for path in found if "/d/" in str(path))


def test_truncated_arrays_are_refused(saved: Path) -> None:
    for path in _array_files(saved):
        path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match=r"checkpoints/7: array \S+ cannot be read"):
        checkpoint.load(saved)


def test_altered_arrays_are_refused(saved: Path) -> None:
    for path in _array_files(saved):
        data = bytearray(path.read_bytes())
        for place in range(0, len(data), 16):
            data[place] ^= 0xFF
        path.write_bytes(data)
    with pytest.raises(UserError, match=r"checkpoints/7: array \S+ cannot be read"):
        checkpoint.load(saved)


def test_missing_arrays_are_refused(saved: Path) -> None:
    shutil.rmtree(saved / "checkpoints/7/params")
    with pytest.raises(UserError, match=r"checkpoints/7: array \S+ cannot be read"):
        checkpoint.load(saved)


def test_arrays_of_another_shape_than_described_are_refused_by_name(saved: Path) -> None:
    value = json.loads(_metadata(saved).read_text())
    value["description"]["num_classes"] = 11
    _metadata(saved).write_text(json.dumps(value))
    with pytest.raises(
        UserError, match=r"array head/\w+ has shape \(.*10,?\), its description asks for \(.*11,?\)"
    ):
        checkpoint.load(saved)


def test_the_hash_depends_on_every_value_name_shape_and_dtype() -> None:
    hashed = checkpoint.weights_hash(PARAMS)
    leaves = flatten(PARAMS)
    name = "blocks/3/attention/out/bias"
    last_bit = leaves[name].copy()
    last_bit[5] = np.nextafter(last_bit[5], np.float32(9))
    renamed = {other if other != "cls" else "clt": leaf for other, leaf in leaves.items()}
    changes = (
        {**leaves, name: last_bit},
        {**leaves, name: leaves[name][None]},
        {**leaves, name: leaves[name].astype(np.float64)},
        renamed,
    )
    hashes = {checkpoint.weights_hash(unflatten(changed)) for changed in changes}
    assert len(hashes - {hashed}) == 4
    backwards = unflatten(dict(reversed(leaves.items())))
    assert checkpoint.weights_hash(backwards) == hashed


def _state(step: int) -> TrainState:
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf) + step, PARAMS)
    moments = {"mu": jax.tree.map(lambda leaf: 2 * leaf, params)}
    opt = (moments, {"count": jnp.int32(step)})
    return TrainState(jnp.int32(step), params, opt, None, nothing_seen())


def test_training_goes_on_from_its_newest_state_and_only_the_last_are_kept(tmp_path: Path) -> None:
    manager = TrainCheckpoints(tmp_path, keep_last=2)
    for step in (10, 20, 30):
        manager.save(_state(step), dataclasses.replace(CARD, meta={**META, "step": step}))
    manager.close()
    assert checkpoint.steps(tmp_path) == [20, 30]

    again = TrainCheckpoints(tmp_path, keep_last=2)
    assert again.latest_step() == 30
    saved = again.restore(_state(0))
    again.close()
    assert_equal(saved["params"], _state(30).params)
    assert jax.tree.structure(saved["opt"]) == jax.tree.structure(_state(30).opt)
    assert jax.tree.all(jax.tree.map(np.array_equal, saved["opt"], _state(30).opt))
    assert checkpoint.load(tmp_path).meta["weights_hash"] == checkpoint.weights_hash(saved["params"])


def test_a_state_that_cannot_be_restored_is_refused_with_its_step(tmp_path: Path) -> None:
    manager = TrainCheckpoints(tmp_path, keep_last=2)
    manager.save(_state(10), dataclasses.replace(CARD, meta={**META, "step": 10}))
    manager.close()
    shutil.rmtree(tmp_path / "checkpoints/10/opt")
    manager = TrainCheckpoints(tmp_path, keep_last=2)
    with pytest.raises(UserError, match=r"checkpoints/10 cannot be restored"):
        manager.restore(_state(0))
    manager.close()


def test_the_best_are_kept_beside_the_newest(tmp_path: Path) -> None:
    manager = TrainCheckpoints(tmp_path, keep_last=1, keep_best=2)
    for step, top1 in ((10, 0.5), (20, 0.9), (30, None), (40, 0.7), (50, 0.6), (60, None)):
        manager.save(_state(step), dataclasses.replace(CARD, meta={**META, "step": step}), top1)
    manager.close()
    assert checkpoint.steps(tmp_path) == [20, 40, 60]
    assert checkpoint.load_card(tmp_path / "checkpoints/20").meta["step"] == 20
    again = TrainCheckpoints(tmp_path, keep_last=1, keep_best=2)
    assert again.latest_step() == 60
    again.save(_state(70), dataclasses.replace(CARD, meta={**META, "step": 70}), 0.8)
    again.close()
    assert checkpoint.steps(tmp_path) == [20, 70]


def test_arrays_of_another_kind_are_refused_by_name_before_any_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manager = TrainCheckpoints(tmp_path, keep_last=1)
    manager.save(_state(10), dataclasses.replace(CARD, meta={**META, "step": 10}))
    manager.close()
    again = TrainCheckpoints(tmp_path, keep_last=1)
    halves = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), _state(0).params)
    with pytest.raises(UserError) as refused:
        again.restore(dataclasses.replace(_state(0), params=halves))
    assert "params/blocks/0/attention/key/bias is float32 " in str(refused.value)
    assert "bfloat16 " in str(refused.value)
    assert " more, listed above; go on with what it began with" in str(refused.value)
    listed = capsys.readouterr().err.splitlines()
    assert sum(line.startswith("params/") for line in listed) == len(jax.tree.leaves(halves))
    narrow = {**_state(0).params, "pos": _state(0).params["pos"][:, :2]}
    fewer = {name: leaf for name, leaf in narrow.items() if name != "norm"}
    with pytest.raises(
        UserError, match=r"params/norm/bias is float32 \S+, not asked for wanted; .*params/pos is"
    ):
        again.restore(dataclasses.replace(_state(0), params=fewer))
    with pytest.raises(UserError, match=r"checkpoints/10 cannot be restored"):
        again.restore(dataclasses.replace(_state(0), ema={"pos": _state(0).params["pos"]}))
    again.close()


def test_a_checkpoint_from_before_there_was_a_guard_goes_on(tmp_path: Path) -> None:
    manager = TrainCheckpoints(tmp_path, keep_last=1)
    manager.save(_state(10), dataclasses.replace(CARD, meta={**META, "step": 10}))
    manager.close()
    shutil.rmtree(tmp_path / "checkpoints/10/recent")
    again = TrainCheckpoints(tmp_path, keep_last=1)
    saved = again.restore(_state(0))
    again.close()
    assert set(saved) == {"params", "opt"}
    assert_equal(saved["params"], _state(10).params)
