"""The ResNet stem of the hybrids as ONNX nodes.

ONNX convolutions are NCHW: images are transposed once at the start, and patches are cut from NCHW at the end. Kernels are
standardised here, once and in double precision, instead of in every call.
"""

import numpy as np

from trainer.description import GROUPS, Stem, unit_convolutions
from trainer.export.graph import Array, Graph
from trainer.export.signature import IMAGES
from trainer.models.build import Params

Size = tuple[int, int]


def stem(graph: Graph, model: Stem, image_size: Size, params: Params) -> str:
    """Images (B, H, W, C) → cells (B, channels, rows, columns)."""
    x = graph.node("Transpose", "stem/channels_first", IMAGES, perm=[0, 3, 1, 2])
    x, size = _convolution(graph, "stem/root", x, image_size, 2, model, params["root"]["kernel"])
    x = _group_norm(graph, "stem/root_norm", x, size, GROUPS, model.norm_eps, params["root_norm"])
    x = graph.node("Relu", "stem/root_relu", x)
    pads = _same_pads(size, 3, 2)
    x = graph.node("MaxPool", "stem/pool", x, kernel_shape=[3, 3], strides=[2, 2], pads=pads)
    size = _strided(size, 2)
    for stage, count in enumerate(model.stages):
        for unit in range(count):
            own = params["stages"][str(stage)][str(unit)]
            x, size = _unit(graph, model, (stage, unit), x, size, own)
    return x


def _unit(
    graph: Graph, model: Stem, place: tuple[int, int], x: str, size: Size, params: Params
) -> tuple[str, Size]:
    """A bottleneck: three convolutions, and the shortcut, projected where it changes shape."""
    name, described = f"stem/stages/{place[0]}/{place[1]}", unit_convolutions(model, *place)

    def normed(part: str, value: str, seen: Size) -> tuple[str, Size]:
        kernel = params[part]["kernel"]
        value, made = _convolution(
            graph, f"{name}/{part}", value, seen, described[part].stride, model, kernel
        )
        norm = params[f"{part}_norm"]
        groups = described[part].groups
        return _group_norm(graph, f"{name}/{part}_norm", value, made, groups, model.norm_eps, norm), made

    y, made = normed("conv1", x, size)
    y, made = normed("conv2", graph.node("Relu", f"{name}/conv1_relu", y), made)
    y, made = normed("conv3", graph.node("Relu", f"{name}/conv2_relu", y), made)
    shortcut = normed("proj", x, size)[0] if "proj" in described else x
    return graph.node("Relu", f"{name}/relu", graph.node("Add", f"{name}/residual", shortcut, y)), made


def _convolution(
    graph: Graph, name: str, x: str, size: Size, stride: int, model: Stem, kernel: Array
) -> tuple[str, Size]:
    """The convolution with `kernel` (H, W, I, O), standardised where the stem does so, and the (H, W) that it makes of `size`."""
    used = _standardised(kernel, model) if model.standardised else np.asarray(kernel)
    weight = graph.weight(f"{name}/kernel", used.transpose(3, 2, 0, 1))
    side = len(kernel)
    pads = _same_pads(size, side, stride)
    made = graph.node("Conv", name, x, weight, kernel_shape=[side, side], strides=[stride, stride], pads=pads)
    return made, _strided(size, stride)


def _standardised(kernel: Array, model: Stem) -> Array:
    """The kernel with zero mean and unit deviation over each output's inputs, float64."""
    wide = np.asarray(kernel, np.float64)
    axes = (0, 1, 2)
    if model.kernel_eps_on == "deviation":
        divisor = wide.std(axis=axes) + model.kernel_eps
    else:
        divisor = np.sqrt(wide.var(axis=axes) + model.kernel_eps)
    return (wide - wide.mean(axis=axes)) / divisor


def _strided(size: Size, stride: int) -> Size:
    return -(-size[0] // stride), -(-size[1] // stride)


def _same_pads(size: Size, kernel: int, stride: int) -> list[int]:
    """TensorFlow's SAME as explicit pads (top, left, bottom, right): the odd one is at the end."""
    totals = [max((made - 1) * stride + kernel - side, 0) for made, side in zip(_strided(size, stride), size)]
    return [total // 2 for total in totals] + [total - total // 2 for total in totals]


def _group_norm(
    graph: Graph, name: str, x: str, size: Size, groups: int, epsilon: float, params: Params
) -> str:
    """GroupNorm as InstanceNormalization of groups, then scale and bias of each channel.

    GroupNormalization itself has a scale per channel only from opset 21 on. ONNX Runtime 1.32 has no CPU kernel for that: it
    expands each into some thirty nodes, twice as slow alone and 5 % slower in R26+S/32 (80.6 ms against 77.0 ms, one image, one
    thread), and strict shape inference of onnx 1.23 cannot see through it. A LayerNormalization of groups takes 78.1 ms.
    """
    scale, bias = (np.asarray(params[part]) for part in ("scale", "bias"))
    ones, zeros = (
        graph.weight(f"stem/ones/{groups}", np.ones(groups, np.float32)),
        graph.weight(f"stem/zeros/{groups}", np.zeros(groups, np.float32)),
    )
    x = graph.reshape(f"{name}/groups", x, [0, groups, -1])
    x = graph.node("InstanceNormalization", name, x, ones, zeros, epsilon=epsilon)
    x = graph.reshape(f"{name}/channels", x, [0, len(scale), *size])
    x = graph.node("Mul", f"{name}/mul", x, graph.weight(f"{name}/scale", scale.reshape(-1, 1, 1)))
    return graph.node("Add", f"{name}/add", x, graph.weight(f"{name}/bias", bias.reshape(-1, 1, 1)))
