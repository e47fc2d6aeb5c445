"""ONNX Runtime on CPU. Imported when a bundle asks for it."""

from pathlib import Path

import onnxruntime

from serving.command import UserError
from serving.runtime.base import Array


class OnnxRuntime:
    """A session whose thread count is said and not guessed: it misreads containers and pinned processes."""

    def __init__(self, model: Path | bytes, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        # Spinning keeps idle cores busy after each request, which an edge box shares with others.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        source = model if isinstance(model, bytes) else str(model)
        try:
            self._session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own exceptions share no base but Exception
            name = "the model" if isinstance(model, bytes) else str(model)
            said = " ".join(str(error).split())
            raise UserError(
                f"{name} cannot be loaded by ONNX Runtime {onnxruntime.__version__}: {said}"
            ) from error
        self._outputs = [output.name for output in self._session.get_outputs()]

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """See `Runtime.run`."""
        return dict(zip(self._outputs, self._session.run(self._outputs, inputs), strict=True))

    def close(self) -> None:
        """Nothing to do: the session goes with its object."""
