"""int8 weights, float arithmetic: a quarter of the file, the speed of float32, and the same answers on every CPU.

The runtime makes the weights float once, when it loads: a Cast and a Mul of constants are folded, where a DequantizeLinear would be
kept for integer products.
"""

import onnx
from onnx import TensorProto, helper, numpy_helper

from trainer.export.int8.products import products_of, read
from trainer.export.int8.rounding import codes_of


def store_int8_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` with the weights of `weight_products` as int8 and scales; what is quantized is what `quantize_int8` quantizes."""
    stored = onnx.ModelProto()
    stored.CopyFrom(model)
    arrays = read(model, (product.kernel for product in products_of(model)))
    kept = [leaf for leaf in model.graph.initializer if leaf.name not in arrays]
    del stored.graph.initializer[:]
    stored.graph.initializer.extend(kept)
    first = []
    for name, kernel in arrays.items():
        codes, scales = codes_of(kernel)
        stored.graph.initializer.append(numpy_helper.from_array(codes, f"{name}/int8"))
        stored.graph.initializer.append(numpy_helper.from_array(scales, f"{name}/scale"))
        whole = f"{name}/float"
        first.append(helper.make_node("Cast", [f"{name}/int8"], [whole], name=whole, to=TensorProto.FLOAT))
        first.append(helper.make_node("Mul", [whole, f"{name}/scale"], [name], name=name))
    rest = list(stored.graph.node)
    del stored.graph.node[:]
    stored.graph.node.extend([*first, *rest])
    onnx.checker.check_model(stored, full_check=True)
    return stored
