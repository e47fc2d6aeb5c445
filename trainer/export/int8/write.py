"""Static int8: weights per output channel, activations calibrated on real images, everything delicate left in float.

ONNX Runtime's own quantizer writes the QDQ pairs. Only products with a weight are quantized, and only their inputs: softmax,
GELU, LayerNorm, the products of attention, residual sums and the classifier stay float, where a ViT loses most of its accuracy.
Quantizing their outputs as well would round once more, and was 8 to 25 % slower on two cores with VNNI.
"""

from collections.abc import Callable, Collection

import numpy as np
import onnx
from onnxruntime import quantization

from serving.command import progress
from serving.runtime import cpu
from trainer.export.graph import Array
from trainer.export.int8 import smooth
from trainer.export.int8.clip import best_range, mean_missed
from trainer.export.int8.observe import Seen, observe
from trainer.export.int8.products import Product, by_tensor, products_of, read, replaced
from trainer.export.int8.weights_only import store_int8_weights

Ranges = dict[str, tuple[float, float]]  # least and greatest value, by tensor


def signed() -> bool:
    """Whether weights are written as int8: where the CPU multiplies uint8 with int8 directly; elsewhere as uint8 around 128.

    An x86 CPU without VNNI adds signed products in 16 bits, which saturate; unsigned ones it widens first, right and slower.
    """
    return cpu.supports(cpu.INT8) is not False


def required_features(model: onnx.ModelProto) -> list[str]:
    """What a CPU must have one of to compute `model` rightly, for its manifest; nothing for float and for unsigned weights."""
    held = {leaf.name: leaf.data_type for leaf in model.graph.initializer}
    kernels = (node.input[0] for node in model.graph.node if node.op_type == "DequantizeLinear")
    return list(cpu.INT8) if any(held.get(name) == onnx.TensorProto.INT8 for name in kernels) else []


def in_precision(
    model: onnx.ModelProto, precision: str, calibration: Callable[[], Array], threads: int = 1
) -> onnx.ModelProto:
    """The float graph `model` in one of `trainer.precisions`; `calibration` gives normalised images where it needs some."""
    if precision == "int8":
        return quantize_int8(model, calibration(), threads)
    return store_int8_weights(model) if precision == "int8_weights" else model


def quantize_int8(model: onnx.ModelProto, images: Array, threads: int = 1) -> onnx.ModelProto:
    """`model` with int8 products, calibrated on `images`: see `Calibrated`."""
    return Calibrated(model, images, threads).graph()


class Calibrated:
    """A float graph made ready for eight bits once; `graph` writes them, with any of the products left in float.

    For each tensor that feeds products: the SmoothQuant fold and the range of the least error, then what rounding takes from each
    product on average, which goes into its bias. A hybrid's convolutions stay float.
    """

    def __init__(self, model: onnx.ModelProto, images: Array, threads: int) -> None:
        """From normalised `images` (N, H, W, C) or tokens (N, T)."""
        products = products_of(model)
        seen = observe(model, products, images, threads)
        self._arrays = read(model, (name for one in products for name in (one.kernel, one.bias)))
        self._smooth(model, products, seen)
        self._model = replaced(model, self._arrays)
        self._ranges: Ranges = {}
        self._corrected: dict[str, Array] = {}
        self._bias = {one.node: one.bias for one in products}
        for tensor, group in by_tensor(products).items():
            self._fit(group, seen[tensor])
        self.products = [one.node for one in products]

    def _smooth(self, model: onnx.ModelProto, products: list[Product], seen: dict[str, Seen]) -> None:
        groups = by_tensor(products)
        norms = smooth.norms_before(model, groups)
        self._arrays |= read(model, (name for pair in norms.values() for name in pair))
        with progress(len(norms), "smoothing") as bar:
            for tensor, pair in norms.items():
                kernels = [one.kernel for one in groups[tensor]]
                found = smooth.factors(seen[tensor], [self._arrays[name] for name in kernels])
                bar.advance()
                if found is None:
                    continue
                seen[tensor] = smooth.smoothed(seen[tensor], found)
                self._arrays |= {name: self._arrays[name] / found for name in pair}
                self._arrays |= {name: self._arrays[name] * found[:, None] for name in kernels}

    def _fit(self, group: list[Product], seen: Seen) -> None:
        bounds = best_range(seen, [self._arrays[one.kernel] for one in group])
        self._ranges[group[0].tensor] = bounds
        for one in group:
            if one.bias:
                missed = mean_missed(seen, self._arrays[one.kernel], bounds)
                self._corrected[one.node] = self._arrays[one.bias] + missed

    def graph(self, floats: Collection[str] = ()) -> onnx.ModelProto:
        """The graph whose products are eight bits but for the nodes `floats`; the batch stays dynamic."""
        integer = [name for name in self.products if name not in set(floats)]
        biases = {self._bias[name]: self._corrected[name] for name in integer if name in self._corrected}
        return _written(replaced(self._model, biases), integer, self._ranges)


def _written(model: onnx.ModelProto, products: list[str], ranges: Ranges) -> onnx.ModelProto:
    if not products:
        return model
    kind = quantization.QuantType
    quantizer = quantization.QDQQuantizer(
        model,
        per_channel=True,
        reduce_range=False,
        weight_qType=kind.QInt8 if signed() else kind.QUInt8,
        activation_qType=kind.QUInt8,
        tensors_range=quantization.TensorsData(
            quantization.CalibrationMethod.MinMax,
            {name: (np.float32(low), np.float32(high)) for name, (low, high) in ranges.items()},
        ),
        nodes_to_quantize=products,
        nodes_to_exclude=[],
        op_types_to_quantize=["MatMul"],
        extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul"], "WeightSymmetric": True},
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    quantized = quantizer.model.model
    onnx.checker.check_model(quantized, full_check=True)
    return quantized
