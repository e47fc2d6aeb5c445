"""Fewer dims per head by truncated whitened SVD: of query·key, and of value·output. Closed form, folded into the weights.

Whitening by the covariance of what the product reads makes the truncation optimal for the data instead of for the weights.
Data-aware SVD is known from ASVD (arXiv:2312.05821) and SVD-LLM (arXiv:2403.07378); here it is applied to whole products per head.

Shapes: D width, N heads, K query/key dim, V value dim; row vectors, so a projection of y (D,) is y @ kernel + bias.
"""

import numpy as np
from scipy.linalg import solve_triangular

from trainer.compress.moments import Array
from trainer.models.build import Params

_DAMPING = 1e-4  # of the largest variance: directions the data never takes keep a finite inverse


def _root(covariance: Array) -> Array:
    """Upper triangular (D, D) whose square, its transpose times itself, is `covariance`, damped."""
    damping = _DAMPING * max(float(covariance.diagonal().max()), np.finfo(np.float64).tiny)
    return np.asarray(np.linalg.cholesky(covariance + damping * np.eye(len(covariance))).T)


def _truncated(left: Array, right: Array, rank: int) -> tuple[Array, Array]:
    """Factors (A, rank) and (B, rank) of the best approximation of `left` (A, K) times `right` (B, K) transposed.

    Each has half of every singular value. The product itself, which is larger and of rank K, is never decomposed. What `rank`
    asks for above the product's own is filled with zeros: a head may have more dims than the stream has channels.
    """
    (left_basis, left_rest), (right_basis, right_rest) = np.linalg.qr(left), np.linalg.qr(right)
    inner_left, values, inner_right = np.linalg.svd(left_rest @ right_rest.T, full_matrices=False)
    half = np.sqrt(values[:rank])
    beyond = ((0, 0), (0, max(rank - len(values), 0)))
    from_left = left_basis @ inner_left[:, :rank] * half
    from_right = right_basis @ inner_right[:rank].T * half
    return np.pad(from_left, beyond), np.pad(from_right, beyond)


def cut_query_key(attention: Params, covariance: Array, mean: Array, dim: int) -> Params:
    """Query and key of every head in `dim` dims, from the moments of the LayerNorm output they read.

    What a query adds alike to all keys cancels in the softmax, so key offsets need not be fitted; the mean query does not
    cancel, and enters the SVD as one more row. The kernel of the query carries √(dim / K), because the model divides logits
    by √dim and the original divided by √K.
    """
    root = _root(covariance)
    query, key = (_float64(attention[name]) for name in ("query", "key"))
    width, heads, old_dim = query["kernel"].shape
    new: dict[str, Params] = {
        name: {"kernel": np.zeros((width, heads, dim)), "bias": np.zeros((heads, dim))}
        for name in ("query", "key")
    }
    for head in range(heads):
        to_query, to_key = query["kernel"][:, head], key["kernel"][:, head]
        mean_query = mean @ to_query + query["bias"][head]
        from_query, from_key = _truncated(np.vstack([root @ to_query, mean_query]), root @ to_key, dim)
        query_kernel, key_kernel = (solve_triangular(root, half) for half in (from_query[:-1], from_key))
        new["query"]["kernel"][:, head], new["key"]["kernel"][:, head] = query_kernel, key_kernel
        new["query"]["bias"][head] = from_query[-1] - mean @ query_kernel
        new["key"]["bias"][head] = -mean @ key_kernel
    scale = np.sqrt(dim / old_dim)
    new["query"] = {name: value * scale for name, value in new["query"].items()}
    return {**attention, **{name: _float32(value) for name, value in new.items()}}


def cut_value_output(attention: Params, covariances: Array, means: Array, dim: int) -> Params:
    """Value and output of every head in `dim` dims, from the moments (N, D, D), (N, D) of its attention-averaged input.

    The mean contribution of each head moves into the output bias, where it costs nothing.
    """
    value, out = _float64(attention["value"]), _float64(attention["out"])
    width, heads, _ = value["kernel"].shape
    kernel, bias = np.zeros((width, heads, dim)), np.zeros((heads, dim))
    out_kernel, out_bias = np.zeros((heads, dim, width)), out["bias"].copy()
    for head in range(heads):
        root = _root(covariances[head])
        to_value, to_out = value["kernel"][:, head], out["kernel"][head]
        from_value, from_out = _truncated(root @ to_value, to_out.T, dim)
        kernel[:, head], out_kernel[head] = solve_triangular(root, from_value), from_out.T
        out_bias += (means[head] @ to_value + value["bias"][head]) @ to_out
        bias[head] = -means[head] @ kernel[:, head]
    return {
        **attention,
        "value": _float32({"kernel": kernel, "bias": bias}),
        "out": _float32({"kernel": out_kernel, "bias": out_bias}),
    }


def _float64(layer: Params) -> Params:
    return {name: np.asarray(value, np.float64) for name, value in layer.items()}


def _float32(layer: Params) -> Params:
    return {name: np.asarray(value, np.float32) for name, value in layer.items()}
