"""SmoothQuant: what is hard to round in activations moves into the weights, exactly, through the LayerNorm before them.

y = (x / s)·(s ∘ W) with s_j = max|x_j|^α / max|W_j|^(1 − α) for channel j (arXiv:2211.10438, equation 4). The paper takes one α for
a model; here each LayerNorm takes the one, or none, that leaves its own products the least error.
"""

from collections.abc import Sequence

import numpy as np
import onnx

from trainer.export.graph import Array
from trainer.export.int8.observe import Seen
from trainer.export.int8.products import Product
from trainer.export.int8.rounding import rounded_activations, rounded_kernel

_ALPHAS = (0.35, 0.5, 0.65, 0.8)
_LEAST = 1e-5


def norms_before(model: onnx.ModelProto, groups: dict[str, list[Product]]) -> dict[str, tuple[str, str]]:
    """The names of scale and bias of the LayerNormalization behind each tensor that feeds nothing but its products."""
    readers: dict[str, set[str]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, set()).add(node.name)
    results = {value.name for value in model.graph.output}
    return {
        node.output[0]: (node.input[1], node.input[2])
        for node in model.graph.node
        if node.op_type == "LayerNormalization"
        and node.output[0] not in results
        and readers.get(node.output[0]) == {product.node for product in groups.get(node.output[0], ())}
    }


def factors(seen: Seen, kernels: Sequence[Array]) -> Array | None:
    """s (C,) that leaves the products of `seen` with `kernels` (C, N) the least error; None where no s beats none."""
    whole = np.concatenate(kernels, axis=1)
    largest = np.maximum(np.maximum(-seen.least, seen.greatest), _LEAST)
    weights = np.maximum(np.abs(whole).max(axis=1), _LEAST)
    tried = [(largest**alpha / weights ** (1 - alpha)).astype(np.float32) for alpha in _ALPHAS]
    wanted = seen.rows @ whole
    errors = [_error(smoothed(seen, s), whole * s[:, None], wanted) for s in tried]
    best = int(np.argmin(errors))
    return tried[best] if errors[best] < _error(seen, whole, wanted) else None


def smoothed(seen: Seen, s: Array) -> Seen:
    """What is seen once the channels are divided by `s` (C,), which is positive."""
    return Seen(seen.least / s, seen.greatest / s, seen.rows / s)


def _error(seen: Seen, kernel: Array, wanted: Array) -> float:
    """‖wanted − what eight bits give‖²."""
    codes = rounded_activations(seen.rows, float(seen.least.min()), float(seen.greatest.max()))
    return float(np.square(codes @ rounded_kernel(kernel) - wanted).sum())
