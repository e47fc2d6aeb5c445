"""How a file lays an array of ours out: one form for each habit, the same entry for reading and for writing.

Shapes: D width, N heads, K head dim, T tokens, P positions.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Form:
    """`stored` gives the shape in the file for one of ours; `read` brings a stored array into our shape, `write` takes it back."""

    stored: Callable[[Shape], Shape]
    read: Callable[[Array, Shape], Array]
    write: Callable[[Array], Array]


def _reshaped(stored: Callable[[Shape], Shape]) -> Form:
    return Form(
        stored, lambda array, shape: array.reshape(shape), lambda array: array.reshape(stored(array.shape))
    )


def _matrix(inputs: int) -> Callable[[Shape], Shape]:
    return lambda shape: (math.prod(shape[:inputs]), math.prod(shape[inputs:]))


def flat_dense(inputs: int) -> Form:
    """A kernel whose first `inputs` axes come in, as a matrix (in, out)."""
    return _reshaped(_matrix(inputs))


def torch_dense(inputs: int) -> Form:
    """A kernel whose first `inputs` axes come in, as PyTorch's matrix (out, in)."""
    matrix = _matrix(inputs)
    return Form(
        lambda shape: matrix(shape)[::-1],
        lambda array, shape: np.ascontiguousarray(array.T).reshape(shape),
        lambda array: np.ascontiguousarray(array.reshape(matrix(array.shape)).T),
    )


SAME = Form(lambda shape: shape, lambda array, shape: array, lambda array: array)
VECTOR = _reshaped(lambda shape: (math.prod(shape),))
# Positions without the leading axis of 1.
TABLE = _reshaped(lambda shape: shape[1:])
# GroupNorm's scale and bias before Flax 0.3.6 (google/flax#1721).
OLD_GROUP_NORM = _reshaped(lambda shape: (1, 1, 1, *shape))
# (H, W, in, out) as PyTorch's (out, in, H, W).
TORCH_CONVOLUTION = Form(
    lambda shape: (shape[3], shape[2], shape[0], shape[1]),
    lambda array, shape: np.ascontiguousarray(array.transpose(2, 3, 1, 0)),
    lambda array: np.ascontiguousarray(array.transpose(3, 2, 0, 1)),
)
# Positions (1, T, D) of patches alone, where the class token is put in front after they were added: its row here is 0.
NO_CLASS_ROW = Form(
    lambda shape: (shape[0], shape[1] - 1, *shape[2:]),
    lambda array, shape: np.concatenate([np.zeros_like(array[:, :1]), array], axis=1),
    lambda array: array[:, 1:],
)


@dataclasses.dataclass(frozen=True)
class Place:
    """Where an array of ours lies in a file: whole, or `part` of `parts` that the file keeps as one array.

    `joined`: parts one below the other ("rows"), or along a new leading axis ("layers").
    """

    name: str
    form: Form = SAME
    part: int = 0
    parts: int = 1
    joined: Literal["rows", "layers"] = "rows"

    def stored(self, shape: Shape) -> Shape:
        """The shape of the file's array in which ours of `shape` lies."""
        part = self.form.stored(shape)
        if self.joined == "layers":
            return (self.parts, *part)
        return (self.parts * part[0], *part[1:]) if self.parts > 1 else part

    def read(self, stored: Array, shape: Shape) -> Array:
        """Ours, of `shape`, out of the file's array; a view where it can be."""
        if self.joined == "layers":
            return self.form.read(stored[self.part], shape)
        if self.parts > 1:
            rows = len(stored) // self.parts
            stored = stored[self.part * rows : (self.part + 1) * rows]
        return self.form.read(stored, shape)


Places = dict[str, Place]  # by our "/"-joined names


def join(parts: list[tuple[Place, Array]]) -> Array:
    """The file's array of all our arrays that lie in it."""
    written = [place.form.write(array) for place, array in sorted(parts, key=lambda one: one[0].part)]
    if parts[0][0].joined == "layers":
        return np.stack(written)
    return written[0] if len(written) == 1 else np.concatenate(written)
