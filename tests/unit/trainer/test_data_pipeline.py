"""The pipeline: the same examples on any number of processes, from any step on; evaluation sees each example once."""

import itertools
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving import preprocess
from serving.command import UserError
from serving.preprocess import PreprocessSpec
from trainer.data.pipeline import HostBatch, eval_batches, fitted, train_batches
from trainer.data.source import ImageSource

ROOT = Path(__file__).parents[3]
SPEC = PreprocessSpec("L", height=8, width=8, mean=(127.5,), std=(127.5,))
N = 37  # divides nothing


def _source(examples: int = N, side: int = 8) -> ImageSource:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (examples, side, side, 1), np.uint8)
    return ImageSource(images, np.arange(examples, dtype=np.int32))


SOURCE = _source()


def _train(steps: int, **changes: Any) -> list[HostBatch]:
    asked = {
        "seed": 3,
        "aug": "shift_flip",
        "batch": 8,
        "start_step": 0,
        "process_index": 0,
        "process_count": 1,
    }
    batches = train_batches(changes.pop("source", SOURCE), SPEC, **{**asked, "workers": 0, **changes})
    return list(itertools.islice(batches, steps))


def _examples(batches: list[HostBatch]) -> list[tuple[int, int, bytes]]:
    """What was seen, in no order: place, label and augmented pixels of every example."""
    return sorted(
        (int(index), int(label), image.tobytes())
        for batch in batches
        for index, label, image in zip(batch["index"], batch["label"], batch["image"], strict=True)
    )


def _same(one: HostBatch, other: HostBatch) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def test_a_batch_holds_bytes_labels_and_places() -> None:
    (batch,) = _train(1)
    assert {name: (value.shape, value.dtype) for name, value in batch.items()} == {
        "image": ((8, 8, 8, 1), np.uint8),
        "label": ((8,), np.int32),
        "index": ((8,), np.int64),
    }


@pytest.mark.parametrize("process_count", [2, 4, 8])
def test_any_number_of_processes_sees_the_same_examples_alike_at_every_step(process_count: int) -> None:
    """12 steps of 8 go through 37 examples more than twice, so that epochs end inside batches."""
    alone = _train(12)
    together = [_train(12, process_index=i, process_count=process_count) for i in range(process_count)]
    for step, batch in enumerate(alone):
        shares = [batches[step] for batches in together]
        assert {len(share["label"]) for share in shares} == {8 // process_count}
        assert _examples(shares) == _examples([batch]), f"step {step}"


@pytest.mark.parametrize("step", [1, 4, 5, 11])
@pytest.mark.parametrize("process_count", [1, 2])
def test_starting_at_a_step_gives_the_very_batch_of_that_step(step: int, process_count: int) -> None:
    here = {"process_index": process_count - 1, "process_count": process_count}
    assert _same(_train(1, start_step=step, **here)[0], _train(step + 1, **here)[step])


def test_a_run_can_go_on_with_another_number_of_processes() -> None:
    whole = _examples(_train(12))
    went = _train(4) + [
        batch for index in range(4) for batch in _train(8, start_step=4, process_index=index, process_count=4)
    ]
    assert _examples(went) == whole


def test_a_far_step_is_reached_without_reading_what_lies_before() -> None:
    class Counting(ImageSource):
        def __getitem__(self, index: int) -> dict[str, Any]:
            read.append(index)
            return super().__getitem__(index)

    read: list[int] = []
    (batch,) = _train(1, source=Counting(SOURCE.images, SOURCE.labels), start_step=10**12)
    assert len(batch["label"]) == 8
    assert len(read) < 8 * 10  # this batch and what is read ahead


def test_every_epoch_holds_each_example_once_in_another_order() -> None:
    places = [int(index) for batch in _train(3 * N) for index in batch["index"]]
    epochs = [places[start : start + N] for start in range(0, 8 * N, N)]
    assert all(sorted(epoch) == list(range(N)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)


def test_an_example_is_augmented_anew_in_every_epoch() -> None:
    views: dict[int, set[bytes]] = {}
    for index, _, image in _examples(_train(3 * N)):
        views.setdefault(index, set()).add(image)
    # 24 epochs of 18 possible views each.
    assert min(map(len, views.values())) > 4


def test_the_seed_decides_order_and_augmentation() -> None:
    assert _same(_train(1)[0], _train(1)[0])
    assert not np.array_equal(_train(1)[0]["index"], _train(1, seed=4)[0]["index"])


def test_without_augmentation_images_are_those_of_serving() -> None:
    source = _source(side=5)
    for index, _, image in _examples(_train(5, source=source, aug="none")):
        assert image == preprocess.fit(source.images[index], SPEC).tobytes()


def test_labels_stay_with_their_images() -> None:
    assert all(np.array_equal(batch["label"], batch["index"]) for batch in _train(12))


def test_images_are_fitted_once_and_not_once_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    source, calls = _source(side=5), list[int]()
    fit = preprocess.fit
    monkeypatch.setattr(preprocess, "fit", lambda image, spec: calls.append(1) or fit(image, spec))
    _train(3 * N, source=source)
    list(eval_batches(source, SPEC, batch=8, process_index=0, process_count=1))
    assert len(calls) == N


def test_a_split_too_large_to_be_sized_at_once_gives_the_same_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fitted.cache_clear()
    at_once = [
        list(eval_batches(SOURCE, SPEC, batch=5, process_index=0, process_count=1)),
        fitted(SOURCE, SPEC)[3],
    ]
    fitted.cache_clear()
    monkeypatch.setattr("trainer.data.pipeline._SIZED_AT_ONCE_BYTES", 0)
    one_by_one = [
        list(eval_batches(SOURCE, SPEC, batch=5, process_index=0, process_count=1)),
        fitted(SOURCE, SPEC)[3],
    ]
    fitted.cache_clear()
    np.testing.assert_equal(one_by_one, at_once)


def test_a_crop_is_taken_even_where_the_size_is_right_already() -> None:
    spec = PreprocessSpec("L", 8, 8, (0.0,), (1.0,), resize="crop", crop_fraction=0.5)
    assert np.array_equal(fitted(SOURCE, spec).image(2), preprocess.fit(SOURCE.images[2], spec))
    assert not np.array_equal(fitted(SOURCE, spec).image(2), SOURCE.images[2])


def test_worker_processes_change_nothing() -> None:
    alone, helped = _train(6), _train(6, workers=2)
    assert all(itertools.starmap(_same, zip(alone, helped, strict=True)))


def test_what_runs_in_a_worker_needs_no_jax() -> None:
    """Grain itself looks for jax and does without it; so does everything of ours that a worker imports."""
    blocked = ("jax", "jaxlib", "flax", "optax", "orbax", "tensorstore")
    script = f"import sys\nsys.modules.update(dict.fromkeys({blocked}))\n" + _ONE_BATCH
    ended = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split() == ["64", "16"]


_ONE_BATCH = """
from serving.preprocess import PreprocessSpec
from trainer.data.pipeline import train_batches
from trainer.data.datasets import open_dataset

spec = PreprocessSpec("L", height=16, width=16, mean=(127.5,), std=(127.5,))
batches = train_batches(open_dataset("digits").train, spec, seed=0, aug="shift", batch=64, start_step=7,
                        process_index=0, process_count=1, workers=0)
print(*next(batches)["image"].shape[:2])
"""


def test_a_process_that_fails_between_batches_ends() -> None:
    """A prefetch thread of Grain left open has been seen to keep the interpreter from ending."""
    script = _ONE_BATCH + "\nraise SystemExit(7)\n"
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 7, ended.stderr


@pytest.mark.parametrize("examples", [1, 7, 8, 9, 37])
@pytest.mark.parametrize(("batch", "process_count"), [(8, 1), (8, 2), (8, 8), (64, 4)])
def test_evaluation_counts_every_example_once(examples: int, batch: int, process_count: int) -> None:
    source = _source(examples)
    shares = [
        list(eval_batches(source, SPEC, batch=batch, process_index=index, process_count=process_count))
        for index in range(process_count)
    ]
    assert len({len(share) for share in shares}) == 1
    assert {part["image"].shape for share in shares for part in share} == {(batch // process_count, 8, 8, 1)}
    counted: Counter[int] = Counter()
    for part in itertools.chain(*shares):
        assert part["mask"].dtype == np.float32
        for label, image, real in zip(part["label"], part["image"], part["mask"], strict=True):
            assert np.array_equal(image, source.images[label])
            counted[int(label)] += int(real)
    assert counted == Counter(range(examples))


def test_evaluation_sees_images_as_serving_fits_them() -> None:
    source = _source(side=5)
    (part,) = eval_batches(source, SPEC, batch=N, process_index=0, process_count=1)
    assert np.array_equal(part["image"], np.stack([preprocess.fit(image, SPEC) for image in source.images]))


def test_a_batch_that_processes_cannot_share_is_refused_at_once() -> None:
    here = {"process_index": 0, "process_count": 3}
    with pytest.raises(
        UserError, match="batch=8 cannot be shared by 3 processes; use a multiple, such as 6 or 9"
    ):
        train_batches(SOURCE, SPEC, seed=0, aug="none", batch=8, start_step=0, workers=0, **here)
    with pytest.raises(
        UserError, match="batch_eval=2 cannot be shared by 3 processes; use a multiple, such as 3"
    ):
        next(eval_batches(SOURCE, SPEC, batch=2, **here))
