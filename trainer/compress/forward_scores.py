"""How much each removable unit matters, from activations alone, in one pass without gradients.

With h the outputs of a group of units, C = Cov(h) and W the weights that read them, unit j scores
  act       √E[h_j²]: how strongly it speaks;
  variance  C_jj·‖W_j‖²: what is lost when its mean moves into the bias that follows;
  obs       ‖W_j‖² / [C⁻¹]_jj: what is lost when the other units take over all that they can predict of it
            (optimal brain surgeon, Hassibi & Stork 1993, with the layer's own output as the loss).
A head is the same with a block of C. A query/key dim adds q_j·k_j to the attention logits, where what is constant over keys
cancels, so k_j stands for h_j and E[q_j²] for ‖W_j‖². A branch is one unit that is read as it is; a block scores 1 − the mean
cosine of its input and output (Men et al. 2024, arXiv:2403.03853). A channel of the residual stream scores in all LayerNorms
of blocks together. A group of inner channels of a stem's unit is scored as a head is, by the convolution that reads it.
"""

import jax
import jax.numpy as jnp
import numpy as np

from trainer.compress import calibration_pass, cells
from trainer.compress.calibration_pass import Pass, Sums
from trainer.compress.moments import Array, damped, of_layer, require_enough
from trainer.description import ViT
from trainer.models.build import Params, bind
from trainer.models.stem import gates_name
from trainer.models.vit import VisionTransformer

KINDS = ("act", "variance", "obs")
_DAMPING = 0.01  # of the mean variance, on the diagonal before C is inverted
_STEM = ("inner1", "inner2")  # what a unit's conv2 and conv3 read

Covariance = tuple[Array, Array]  # (A, A), and the mean (A,)


def score(teacher: ViT, params: Params, images: Array, kind: str, how: Pass) -> dict[str, dict[str, Array]]:
    """Scores by block index and unit, from normalised images (images, H, W, C), the same ones on every process.

    Head dims are scored as they lie in `params`.

    Raises:
      UserError: when there are too few images for one of the covariances.
    """
    _require_enough(teacher, len(images))
    sums = calibration_pass.summed(how, _sums(teacher), params, (images,), _additive)
    found = _units_of_stem(teacher, params, sums, kind)
    channels = np.zeros(teacher.width)
    for index, block in enumerate(teacher.blocks):
        own, of, scores = params["blocks"][str(index)], sums[str(index)], dict[str, Array]()
        if block.num_heads:
            norm, heads = _covariance(of["norm1"]), _covariance(of["heads"])
            scores |= _attention(own["attention"], norm, heads, kind)
            readers = [own["attention"][name]["kernel"] for name in ("query", "key", "value")]
            channels += _read_channels(norm, readers, kind)
        if block.mlp_dim:
            norm, (covariance, mean) = _covariance(of["norm2"]), _covariance(of["hidden"])
            kernel = np.asarray(own["mlp"]["fc2"]["kernel"], np.float64)
            scores["mlp"] = _units(covariance, mean, (kernel**2).sum(axis=1), kind)
            channels += _read_channels(norm, [own["mlp"]["fc1"]["kernel"]], kind)
            scores["mlp_branch"] = _branch(covariance, mean, kernel, own["mlp"]["fc2"]["bias"], kind)
        turned = of["cosines"] / (len(images) * teacher.num_tokens)
        found[str(index)] = {**scores, "block": np.asarray(1 - turned)}
    return found | {"stream": {"width": channels}}


def _require_enough(teacher: ViT, images: int) -> None:
    rows = images * teacher.num_tokens
    for index, block in enumerate(teacher.blocks):
        with of_layer(index):
            require_enough("the output of the heads", rows, block.num_heads * block.v_dim)
            require_enough("the MLP's hidden layer", rows, block.mlp_dim)


def _sums(teacher: ViT) -> Sums:
    """(parameters, images, counts) → by block and unit of the stem: moments of what is scored, and cosines over a block."""

    @jax.jit
    def sums(params: Params, images: jax.Array, counts: jax.Array) -> Params:
        model = bind(teacher, params)
        x, found = _embedded(model, images, counts)
        for index in range(model.depth):
            block, before, own = model.block(index), x, dict[str, Params]()
            if block.has_attention:
                added, taps = block.attend(x)
                flat = taps["heads"].reshape(*taps["heads"].shape[:2], -1)
                own |= {"norm1": _moments(taps["norm"], counts), "heads": _moments(flat, counts)}
                x = x + added
            if block.has_mlp:
                added, taps = block.transform(x)
                own |= {"norm2": _moments(taps["norm"], counts), "hidden": _moments(taps["hidden"], counts)}
                x = x + added
            found[str(index)] = {**own, "cosines": jnp.tensordot(counts, _cosines(before, x), 1)}
        return found

    return sums


def _embedded(model: VisionTransformer, images: jax.Array, counts: jax.Array) -> tuple[jax.Array, Params]:
    """The stream before the first block, and the moments of what is scored in the stem."""
    if model.stem is None:
        return model.embed(images), {}
    read, found = model.stem.begin(images), dict[str, Params]()
    for index in range(len(model.stem.places)):
        read, taps = model.stem.unit(index)(read)
        found[gates_name(index)] = {name: _moments(taps[name], counts) for name in _STEM}
    return model.place(read), found


def _moments(x: jax.Array, counts: jax.Array) -> Params:
    """Rows, mean, and the products (A, A) about it, of x (B, …, A), whose images count as `counts` (B,) says."""
    rows = jnp.broadcast_to(counts.reshape(-1, *[1] * (x.ndim - 2)), x.shape[:-1]).reshape(-1, 1)
    flat = x.reshape(-1, x.shape[-1])
    mean = (rows * flat).sum(axis=0) / rows.sum()
    about = flat - mean
    products = jnp.matmul(about.T, rows * about, precision=jax.lax.Precision.HIGHEST)
    return {"rows": rows.sum(), "mean": mean, "products": products}


def _cosines(before: jax.Array, after: jax.Array) -> jax.Array:
    """The cosines between tokens (B, T, D) before and after a block, summed over the tokens: (B,)."""
    lengths = jnp.linalg.norm(before, axis=-1) * jnp.linalg.norm(after, axis=-1)
    return (jnp.sum(before * after, axis=-1) / jnp.maximum(lengths, jnp.finfo(jnp.float32).tiny)).sum(axis=-1)


def _additive(found: Params) -> Params:
    """A batch's moments as rows, their sum, and their products about zero: these add up over batches."""
    if "products" not in found:
        return {name: _additive(value) if isinstance(value, dict) else value for name, value in found.items()}
    rows, mean = found["rows"], found["mean"]
    return {"rows": rows, "sum": rows * mean, "products": found["products"] + rows * np.outer(mean, mean)}


def _covariance(sums: Params) -> Covariance:
    mean = sums["sum"] / sums["rows"]
    return sums["products"] / sums["rows"] - np.outer(mean, mean), mean


def _read_channels(norm: Covariance, kernels: list[Array], kind: str) -> Array:
    """Scores (D,) of the channels that `kernels` (D, …) read behind one LayerNorm."""
    covariance, mean = norm
    read = sum((np.asarray(kernel, np.float64) ** 2).reshape(len(mean), -1).sum(axis=1) for kernel in kernels)
    return _units(covariance, mean, np.asarray(read), kind)


def _units_of_stem(teacher: ViT, params: Params, sums: Params, kind: str) -> dict[str, dict[str, Array]]:
    found: dict[str, dict[str, Array]] = {}
    for index, place in enumerate(teacher.stem.places if teacher.stem else ()):
        assert teacher.stem is not None  # it has places
        own, groups = cells.unit_params(params, place), cells.groups(teacher.stem)[index]
        found[gates_name(index)] = {
            name: _heads(
                *_covariance(sums[gates_name(index)][tap]),
                _readers(cells.kernel(teacher.stem, place, own, reader), groups),
                kind,
            )
            for name, tap, reader in zip(("conv1", "conv2"), _STEM, ("conv2", "conv3"))
        }
    return found


def _readers(kernel: Array, groups: int) -> Array:
    """A kernel (H, W, I, O) by the groups of its inputs: (groups, channels of each, H · W · O)."""
    by_input = np.asarray(kernel, np.float64).transpose(2, 0, 1, 3)
    return by_input.reshape(groups, len(by_input) // groups, -1)


def _attention(attention: Params, norm: Covariance, heads: Covariance, kind: str) -> dict[str, Array]:
    out = np.asarray(attention["out"]["kernel"], np.float64)  # (N, V, D)
    count, dims, _ = out.shape
    covariance, mean = heads
    value = _units(covariance, mean, (out**2).sum(axis=2).ravel(), kind).reshape(count, dims)
    flat = out.reshape(count * dims, -1)
    return {
        "heads": _heads(covariance, mean, out, kind),
        "query_key": _query_key(attention, *norm, kind),
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
