"""What a runtime is: tensors in, tensors out, any batch size."""

from typing import Any, Protocol

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


class Runtime(Protocol):
    """A loaded model; `run` may be called from several threads."""

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """The outputs by name for the inputs by name; the first axis of each is the batch."""
        ...

    def close(self) -> None:
        """Gives back what the engine holds."""
        ...
