"""Token merging against its definition, one image and one token at a time, and what it must leave alone."""

import dataclasses

import jax
import numpy as np
import pytest

from tests.support.small_families import DEIT
from tests.support.small_models import SMALL, Array, merging, random_params, smooth_images
from trainer.description import ViT
from trainer.models.build import bind, flatten
from trainer.models.merging import matches, merge

B, T, D, N, K = 2, 9, 6, 3, 4
SAME = 1e-5  # float32 sums of a few terms in two orders


def _drawn(seed: int = 0) -> tuple[Array, Array, Array]:
    """A stream, the sizes of its tokens, and keys."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 5, (B, T, 1))
    x, keys = rng.normal(size=(B, T, D)), rng.normal(size=(B, T, N, K))
    return x.astype(np.float32), sizes.astype(np.float32), keys.astype(np.float32)


def _by_hand(x: Array, sizes: Array, keys: Array, count: int, prefix: int) -> list[tuple[Array, float]]:
    """One image: (T, D), (T,), (T, N, K) → its tokens with their sizes."""
    mean = keys.mean(axis=1)
    first, second = range(prefix, len(x), 2), range(prefix + 1, len(x), 2)
    pairs = []
    for a in first:
        cosine = {b: mean[a] @ mean[b] / np.linalg.norm(mean[a]) / np.linalg.norm(mean[b]) for b in second}
        best = max(second, key=lambda b: cosine[b])
        pairs.append((cosine[best], a, best))
    groups = {token: [token] for token in range(len(x))}
    for _, a, b in sorted(pairs, reverse=True)[:count]:
        groups[b] += groups.pop(a)
    return [
        (np.average(x[group], axis=0, weights=sizes[group]), sizes[group].sum()) for group in groups.values()
    ]


@pytest.mark.parametrize("prefix", [0, 1, 2])
@pytest.mark.parametrize("count", [1, 3])
def test_the_most_alike_pairs_become_their_weighted_mean_and_all_others_stay_in_order(
    prefix: int, count: int
) -> None:
    x, sizes, keys = _drawn()
    tokens, counts = merge(x, sizes, keys, count, prefix)
    assert (tokens.shape, counts.shape) == ((B, T - count, D), (B, T - count, 1))
    for image in range(B):
        wanted = _by_hand(x[image], sizes[image, :, 0], keys[image], count, prefix)
        np.testing.assert_allclose(tokens[image], [token for token, _ in wanted], atol=SAME)
        np.testing.assert_array_equal(counts[image, :, 0], [size for _, size in wanted])


def test_without_sizes_every_token_stands_for_one_patch() -> None:
    x, _, keys = _drawn()
    found, wanted = merge(x, None, keys, 3, 1), merge(x, np.ones((B, T, 1), np.float32), keys, 3, 1)
    assert all(np.array_equal(one, other) for one, other in zip(found, wanted))


def test_of_pairs_that_are_exactly_alike_the_first_are_merged_into_the_first() -> None:
    keys = np.zeros((B, T, N, K), np.float32)
    keys[..., 0] = 1
    gone, into = matches(keys, 3, 1)
    assert gone.tolist() == [[1, 3, 5]] * B
    assert into.tolist() == [[2, 2, 2]] * B


def test_keys_of_zeros_are_like_nothing_and_give_numbers_all_the_same() -> None:
    x, sizes, keys = _drawn()
    assert np.isfinite(merge(x, sizes, np.zeros_like(keys), 3, 0)[0]).all()


def _twins(model: ViT) -> tuple[ViT, dict[str, object], Array]:
    """A model and images whose patches 2i and 2i + 1 hold the same pixels at the same positions: merging them loses nothing."""
    model = dataclasses.replace(model, image_size=(8, 8))
    params = random_params(model)
    pos = np.array(params["pos"])
    pos[:, model.num_prefix + 1 :: 2] = pos[:, model.num_prefix :: 2]
    images = smooth_images(model, 3)
    images[:, :, 4:] = images[:, :, :4]
    return model, {**params, "pos": pos}, images


@pytest.mark.parametrize("model", [SMALL, DEIT], ids=["gap", "distilled"])
def test_merging_tokens_that_are_the_same_changes_nothing_since_sizes_are_weighed_in(model: ViT) -> None:
    model, params, images = _twins(model)
    whole, merged = (np.asarray(bind(one, params)(images)) for one in (model, merging(model, 2)))
    np.testing.assert_allclose(merged, whole, atol=1e-4)  # logits of about 10, in sums of other orders


def test_gradients_go_through_merged_tokens_to_every_parameter_in_front_of_them() -> None:
    model = merging(dataclasses.replace(SMALL, image_size=(16, 16)), 4, 3)
    images = smooth_images(model, 2)
    grads = jax.grad(lambda params: (bind(model, params)(images) ** 2).sum())(random_params(model))
    # A bias of all keys alone moves nothing: softmax takes no notice of what all logits of a token share.
    leaves = {name: leaf for name, leaf in flatten(grads).items() if not name.endswith("key/bias")}
    assert all(np.isfinite(leaf).all() and np.abs(leaf).max() > 1e-3 for leaf in leaves.values())
