"""What timm and transformers share: PyTorch's names of leaves, and its order of axes."""

from trainer.description import Model
from trainer.models.build import flatten, param_shapes
from trainer.weights import forms, names
from trainer.weights.forms import Form, Place, Places

_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}
_FUSED = ("query", "key", "value")


def places(model: Model, table: names.Table, fused: bool) -> Places:
    """Where the arrays of `model` lie by `table`; `fused`: query, key and value below each other in one array."""
    found = {}
    for name in flatten(param_shapes(model)):
        translated = names.translate(table, name)
        if translated is None:
            continue
        module, leaf = translated
        theirs = f"{module}.{_LEAVES[leaf]}" if leaf else module
        part = name.split("/")[-2] if "/" in name else ""
        if fused and part in _FUSED:
            found[name] = Place(theirs, _form(name), _FUSED.index(part), len(_FUSED), "rows")
        else:
            found[name] = Place(theirs, _form(name))
    return found


def _form(name: str) -> Form:
    if names.is_convolution(name):
        return forms.TORCH_CONVOLUTION
    if name.endswith("kernel"):
        return forms.torch_dense(names.inputs_of(name))
    return forms.VECTOR if name.endswith("bias") else forms.SAME
