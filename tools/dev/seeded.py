"""Weights and inputs made from names alone, so that a golden file needs only names, shapes and answers.

The same bits come out on both sides: in the environment of the reference implementation and in our tests. Needs numpy only.
"""

import re
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float32]
Spec = list[tuple[str, tuple[int, ...]]]  # (name, shape) of every array

# Names of tables and tokens that are added to the residual stream, in the three namings.
_ADDED = re.compile(
    r"(pos_embedding|pos_embed|position_embeddings|cls|cls_token|dist_token|distillation_token|embedding)$"
)


def weight(name: str, shape: tuple[int, ...]) -> Float:
    """A float32 array for `name`, published ("a/b/kernel", inputs first) or of PyTorch ("a.b.weight", outputs first).

    Norm scales lie near 1, kernels have variance 1/fan_in, what is added to the stream 1/4, the rest 1/100: logits of such a model
    have a deviation near 1.
    """
    z = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    leaf = re.split(r"[/.]", name)[-1]
    if leaf == "scale" or (leaf == "weight" and len(shape) == 1):
        return 1 + np.float32(0.1) * z
    if _ADDED.search(name.removesuffix(".weight")) or name.endswith("_embeddings.weight"):
        return np.float32(0.5) * z
    if leaf in ("kernel", "weight"):
        return (z / np.sqrt(_fan_in(name, leaf, shape))).astype(np.float32)
    return np.float32(0.1) * z


def _fan_in(name: str, leaf: str, shape: tuple[int, ...]) -> int:
    if leaf == "weight":
        return int(np.prod(shape[1:]))
    if len(shape) == 3 and "MultiHead" in name:  # query, key, value (D, N, K); out (N, K, D)
        return shape[0] * shape[1] if name.endswith("out/kernel") else shape[0]
    return int(np.prod(shape[:-1]))


def arrays(spec: Spec) -> dict[str, Float]:
    """Every array of `spec` by name."""
    return {name: weight(name, shape) for name, shape in spec}


def images(count: int, size: int) -> Float:
    """(B, H, W, 3) in [-1, 1]."""
    return np.random.default_rng(7).uniform(-1, 1, (count, size, size, 3)).astype(np.float32)


def texts(count: int, length: int, vocabulary: int) -> npt.NDArray[np.int32]:
    """(B, T) token numbers; every text is three tokens shorter than the one before, and filled up with 0."""
    tokens = np.random.default_rng(9).integers(1, vocabulary, (count, length)).astype(np.int32)
    for index, text in enumerate(tokens):
        text[length - 3 * index :] = 0
    return tokens


def write_npz(path: Path, spec: Spec, layout: str) -> None:
    """A checkpoint as it is published: layout `npz`, or big_vision's below params/, with one array per layer or with all of them
    stacked (`bigvision`, `bigvision-scan`)."""
    leaves = arrays(spec)
    if layout == "bigvision-scan":
        leaves = _stacked(leaves)
    prefix = "" if layout == "npz" else "params/"
    np.savez(path, **{prefix + name: leaf for name, leaf in leaves.items()})  # type: ignore[arg-type]


def _stacked(leaves: dict[str, Float]) -> dict[str, Float]:
    stacked, layers = {}, dict[str, dict[int, Float]]()
    for name, leaf in leaves.items():
        if found := re.match(r"(.*/encoderblock)_(\d+)(/.*)", name):
            layers.setdefault(found[1] + found[3], {})[int(found[2])] = leaf
        else:
            stacked[name] = leaf
    return stacked | {
        name: np.stack([leaf for _, leaf in sorted(by_index.items())]) for name, by_index in layers.items()
    }
