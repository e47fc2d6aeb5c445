"""The products with a weight in an exported graph, what feeds them, and their weights read and replaced."""

import dataclasses
from collections.abc import Iterable, Mapping

import onnx
from onnx import numpy_helper

from trainer.export.graph import Array
from trainer.export.onnx_writer import weight_products


@dataclasses.dataclass(frozen=True)
class Product:
    """`node` multiplies `tensor` (…, C) with `kernel` (C, N) and adds `bias` (N,); no bias is ""."""

    node: str
    tensor: str
    kernel: str
    bias: str


def products_of(model: onnx.ModelProto) -> list[Product]:
    """The products of `weight_products`, in the graph's order."""
    chosen, held = (
        set(weight_products(model)),
        {leaf.name: len(leaf.dims) for leaf in model.graph.initializer},
    )
    added = {
        node.input[0]: node.input[1]
        for node in model.graph.node
        if node.op_type == "Add" and held.get(node.input[1]) == 1
    }
    return [
        Product(node.name, node.input[0], node.input[1], added.get(node.output[0], ""))
        for node in model.graph.node
        if node.name in chosen
    ]


def by_tensor(products: Iterable[Product]) -> dict[str, list[Product]]:
    """The products that each tensor feeds."""
    groups: dict[str, list[Product]] = {}
    for product in products:
        groups.setdefault(product.tensor, []).append(product)
    return groups


def read(model: onnx.ModelProto, names: Iterable[str]) -> dict[str, Array]:
    """Initialisers by name; "" is left out."""
    wanted = set(names) - {""}
    return {leaf.name: numpy_helper.to_array(leaf) for leaf in model.graph.initializer if leaf.name in wanted}


def replaced(model: onnx.ModelProto, arrays: Mapping[str, Array]) -> onnx.ModelProto:
    """A copy of `model` whose initialisers of those names hold `arrays`, of the same shapes."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for leaf in copy.graph.initializer:
        if leaf.name in arrays:
            leaf.CopyFrom(numpy_helper.from_array(arrays[leaf.name].astype("float32"), leaf.name))
    return copy
