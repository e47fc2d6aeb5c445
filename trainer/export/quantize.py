"""Static int8: weights per output channel, activations calibrated on real images, everything delicate left in float.

ONNX Runtime's own quantizer writes the QDQ pairs. Only products with a weight are quantized, and only their inputs: softmax,
GELU, LayerNorm, the products of attention, residual sums and the classifier stay float, where a ViT loses most of its accuracy.
"""

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import onnx
from onnxruntime import quantization

from trainer.export.graph import Array
from trainer.export.onnx_writer import INPUT, weight_products

# Activations are unsigned, weights signed: the pairing that VNNI multiplies directly. On AVX2 without VNNI it may saturate.
CPU_FEATURES = ("avx512_vnni", "avx_vnni", "asimddp")
_BATCH = 32


class _Images(quantization.CalibrationDataReader):
    """Calibration images (N, H, W, C) in batches, which the calibrator asks for in rounds; the names are the base class's."""

    def __init__(self, images: Array) -> None:
        self._batches = [images[start : start + _BATCH] for start in range(0, len(images), _BATCH)]
        self._round: Iterator[Array] = iter(())

    def __len__(self) -> int:
        return len(self._batches)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Begins a round of the batches from `start_index` to before `end_index`."""
        self._round = iter(self._batches[start_index:end_index])

    def get_next(self) -> dict[str, Array] | None:
        """The round's next batch by input name, None after its last."""
        batch = next(self._round, None)
        return None if batch is None else {INPUT: batch}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps to itself what the quantizer prints, and its advice (on the root logger) to do a step that was done."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(max(before, logging.ERROR))
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        root.setLevel(before)


def quantize_int8(model: onnx.ModelProto, images: Array) -> onnx.ModelProto:
    """`model` with int8 products, its ranges from normalised `images` float32 (N, H, W, C); the batch stays dynamic.

    Ranges are the 99.99th percentiles of what was seen: one outlier does not cost everybody resolution.
    """
    products = weight_products(model)
    with tempfile.TemporaryDirectory() as folder, _quiet():
        source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        onnx.save(model, source)
        quantization.quantize_static(
            source,
            target,
            _Images(images),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=["MatMul"],
            nodes_to_quantize=products,
            per_channel=True,
            weight_type=quantization.QuantType.QInt8,
            activation_type=quantization.QuantType.QUInt8,
            calibrate_method=quantization.CalibrationMethod.Percentile,
            extra_options={
                "CalibPercentile": 99.99,
                # Despite its name for percentiles too: one batch a round, because a round holds all of its activations
                # in memory at once and must have batches of one size.
                "CalibStridedMinMax": 1,
                "OpTypesToExcludeOutputQuantization": ["MatMul"],
                "WeightSymmetric": True,
            },
        )
        return onnx.load(target)
