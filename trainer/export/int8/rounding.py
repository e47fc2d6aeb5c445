"""What eight bits leave of activations and kernels, in NumPy: the arithmetic of the file, for choosing what goes into it."""

import numpy as np

from trainer.export.graph import Array

_STEPS = 255
_GREATEST = 127
_SMALLEST = float(np.finfo(np.float32).tiny)


def rounded_activations(values: Array, least: float, greatest: float) -> Array:
    """float32 `values` on the 256 codes between `least` and `greatest`; zero keeps a code; what lies outside is clipped."""
    least, greatest = min(least, 0.0), max(greatest, 0.0)
    scale = np.float32(max((greatest - least) / _STEPS, _SMALLEST))
    zero = np.float32(np.rint(-least / scale))
    codes = np.rint(values / scale)
    codes += zero
    np.clip(codes, 0, _STEPS, out=codes)
    codes -= zero
    codes *= scale
    return codes


def codes_of(kernel: Array) -> tuple[Array, Array]:
    """`kernel` float32 (inputs, outputs) as codes int8 of that shape and scales float32 (outputs,); their product is near it.

    Symmetric, one scale for each output: w ≈ s·q with s = max|w| / 127 (arXiv:2004.09602, §3).
    """
    largest = np.abs(kernel).max(axis=0)
    scales = (np.where(largest > 0, largest, _GREATEST) / _GREATEST).astype(np.float32)
    return np.rint(kernel / scales).astype(np.int8), scales


def rounded_kernel(kernel: Array) -> Array:
    """`kernel` as its codes give it back, float32."""
    codes, scales = codes_of(kernel)
    return codes * scales
