"""How much each removable unit matters, from activations alone: one walk through the blocks, no gradient.

With h the outputs of a group of units, C = Cov(h) and W the weights that read them, unit j scores
  act       √E[h_j²]: how strongly it speaks;
  variance  C_jj·‖W_j‖²: what is lost when its mean moves into the bias that follows;
  obs       ‖W_j‖² / [C⁻¹]_jj: what is lost when the other units take over all that they can predict of it
            (optimal brain surgeon, Hassibi & Stork 1993, with the layer's own output as the loss).
A head is the same with a block of C. A query/key dim adds q_j·k_j to the attention logits, where what is constant over keys
cancels, so k_j stands for h_j and E[q_j²] for ‖W_j‖². A branch is one unit that is read as it is; a block scores 1 − the mean
cosine of its input and output (Men et al. 2024, arXiv:2403.03853). A channel of the residual stream scores in all LayerNorms
that read it together. A group of inner channels of a stem's unit is scored as a head is, by the convolution that reads it.
"""

import numpy as np

from trainer.compress import cells, streams
from trainer.compress.moments import Array, Moments, damped
from trainer.description import Block, ViT
from trainer.models.build import Params
from trainer.models.stem import gates_name

KINDS = ("act", "variance", "obs")
_DAMPING = 0.01  # of the mean variance, on the diagonal before C is inverted


def score(teacher: ViT, params: Params, images: Array, kind: str, batch: int) -> dict[str, dict[str, Array]]:
    """Scores by block index and unit, from normalised images (images, H, W, C); head dims are scored as they lie in `params`."""
    stream, found = (
        streams.embed(teacher, params, images, batch),
        _units_of_stem(teacher, params, images, kind, batch),
    )
    channels = np.zeros(teacher.width)
    for index, block in enumerate(teacher.blocks):
        own, before, scores = params["blocks"][str(index)], stream, dict[str, Array]()
        if block.num_heads:
            norm, heads, stream = _attention_moments(teacher, block, own, stream, batch)
            scores |= _attention(own["attention"], norm, heads, kind)
            readers = [own["attention"][name]["kernel"] for name in ("query", "key", "value")]
            channels += _read_channels(norm, readers, kind)
        if block.mlp_dim:
            norm, hidden, stream = _mlp_moments(teacher, block, own, stream, batch)
            covariance, mean = hidden.covariance()
            kernel = np.asarray(own["mlp"]["fc2"]["kernel"], np.float64)
            scores["mlp"] = _units(covariance, mean, (kernel**2).sum(axis=1), kind)
            channels += _read_channels(norm, [own["mlp"]["fc1"]["kernel"]], kind)
            scores["mlp_branch"] = _branch(covariance, mean, kernel, own["mlp"]["fc2"]["bias"], kind)
        found[str(index)] = {**scores, "block": _turn(before, stream)}
    return found | {"stream": {"width": channels}}


def _attention_moments(
    model: ViT, block: Block, params: Params, stream: Array, size: int
) -> tuple[Moments, Moments, Array]:
    """Moments of the LayerNorm output and of all heads' outputs side by side (heads · dims), and the stream after them."""
    branch, norm, heads, after = streams.attention_branch(model, block), Moments(), Moments(), []
    for rows in streams.batches(len(stream), size):
        added, taps = branch(params, stream[rows])
        norm.add(taps["norm"])
        heads.add(taps["heads"].reshape(*taps["heads"].shape[:2], -1))
        after.append(stream[rows] + np.asarray(added))
    heads.require_enough("the output of the heads")
    return norm, heads, np.concatenate(after)


def _mlp_moments(
    model: ViT, block: Block, params: Params, stream: Array, size: int
) -> tuple[Moments, Moments, Array]:
    """Moments of the LayerNorm output and of the hidden layer, and the stream after them."""
    branch, norm, hidden, after = streams.mlp_branch(model, block), Moments(), Moments(), []
    for rows in streams.batches(len(stream), size):
        added, taps = branch(params, stream[rows])
        norm.add(taps["norm"])
        hidden.add(taps["hidden"])
        after.append(stream[rows] + np.asarray(added))
    hidden.require_enough("the MLP's hidden layer")
    return norm, hidden, np.concatenate(after)


def _read_channels(norm: Moments, kernels: list[Array], kind: str) -> Array:
    """Scores (D,) of the channels that `kernels` (D, …) read behind one LayerNorm."""
    covariance, mean = norm.covariance()
    read = sum((np.asarray(kernel, np.float64) ** 2).reshape(len(mean), -1).sum(axis=1) for kernel in kernels)
    return _units(covariance, mean, np.asarray(read), kind)


def _units_of_stem(
    teacher: ViT, params: Params, images: Array, kind: str, batch: int
) -> dict[str, dict[str, Array]]:
    found: dict[str, dict[str, Array]] = {}
    if not teacher.stem:
        return found
    read = cells.begin(teacher, params, images, batch)
    for index, place in enumerate(teacher.stem.places):
        unit, own, after = cells.unit(teacher.stem, place), cells.unit_params(params, place), []
        moments = {"conv1": Moments(), "conv2": Moments()}
        for rows in streams.batches(len(read), batch):
            made, taps = unit(own, read[rows])
            moments["conv1"].add(taps["inner1"])
            moments["conv2"].add(taps["inner2"])
            after.append(np.asarray(made))
        groups = cells.groups(teacher.stem)[index]
        found[gates_name(index)] = {
            name: _heads(
                *one.covariance(), _readers(cells.kernel(teacher.stem, place, own, reader), groups), kind
            )
            for (name, one), reader in zip(moments.items(), ("conv2", "conv3"))
        }
        read = np.concatenate(after)
    return found


def _readers(kernel: Array, groups: int) -> Array:
    """A kernel (H, W, I, O) by the groups of its inputs: (groups, channels of each, H · W · O)."""
    by_input = np.asarray(kernel, np.float64).transpose(2, 0, 1, 3)
    return by_input.reshape(groups, len(by_input) // groups, -1)


def _attention(attention: Params, norm: Moments, heads: Moments, kind: str) -> dict[str, Array]:
    out = np.asarray(attention["out"]["kernel"], np.float64)  # (N, V, D)
    count, dims, _ = out.shape
    covariance, mean = heads.covariance()
    value = _units(covariance, mean, (out**2).sum(axis=2).ravel(), kind).reshape(count, dims)
    flat = out.reshape(count * dims, -1)
    return {
        "heads": _heads(covariance, mean, out, kind),
        "query_key": _query_key(attention, *norm.covariance(), kind),
        "value": value,
        "attention": _branch(covariance, mean, flat, attention["out"]["bias"], kind),
    }


def _units(covariance: Array, mean: Array, read: Array, kind: str) -> Array:
    """Scores of single units, (A,), by the squared norm (A,) of the weights that read each."""
    if kind == "act":
        return np.sqrt(np.diag(covariance) + mean**2)
    if kind == "variance":
        return np.diag(covariance) * read
    return read / np.diag(_precision(covariance))


def _heads(covariance: Array, mean: Array, out: Array, kind: str) -> Array:
    count, dims, _ = out.shape
    if kind == "act":
        return np.sqrt((np.diag(covariance) + mean**2).reshape(count, dims).sum(axis=1))
    whole = covariance if kind == "variance" else _precision(covariance)
    own = [whole[h * dims : (h + 1) * dims, h * dims : (h + 1) * dims] for h in range(count)]
    spread = own if kind == "variance" else [np.linalg.inv(block) for block in own]
    return np.array([np.sum(kernel * (block @ kernel)) for kernel, block in zip(out, spread)])


def _query_key(attention: Params, covariance: Array, mean: Array, kind: str) -> Array:
    found = []
    for head in range(attention["query"]["kernel"].shape[1]):
        (query, query_bias), (key, key_bias) = (
            (np.asarray(attention[name][part][..., head, :], np.float64) for part in ("kernel", "bias"))
            for name in ("query", "key")
        )
        asked = np.einsum("dk,de,ek->k", query, covariance, query) + (mean @ query + query_bias) ** 2
        of_keys = _units(key.T @ covariance @ key, mean @ key + key_bias, asked, kind)
        found.append(of_keys * np.sqrt(asked) if kind == "act" else of_keys)
    return np.stack(found)


def _branch(covariance: Array, mean: Array, kernel: Array, bias: Array, kind: str) -> Array:
    spread = np.sum(kernel * (covariance @ kernel))
    if kind != "act":
        return np.asarray(spread)
    return np.sqrt(spread + np.sum((mean @ kernel + np.asarray(bias)) ** 2))


def _precision(covariance: Array) -> Array:
    return np.linalg.inv(damped(covariance, _DAMPING))


def _turn(before: Array, after: Array) -> Array:
    """1 − the mean cosine between the stream's tokens (images, T, D) before and after a block."""
    lengths = np.linalg.norm(before, axis=-1) * np.linalg.norm(after, axis=-1)
    cosine = np.sum(before * after, axis=-1) / np.maximum(lengths, np.finfo(np.float32).tiny)
    return np.asarray(1 - cosine.mean())
