"""From the name in a manifest to a runtime. A new engine is a file of its own and a line here."""

from pathlib import Path

from serving.command import UserError
from serving.runtime.base import Runtime

RUNTIMES = ("onnxruntime",)


def open_runtime(model: Path | bytes, runtime: str, threads: int) -> Runtime:
    """The model file (or its bytes) loaded by the engine called `runtime`, computing on `threads` threads.

    Raises:
      UserError: for an engine that is unknown or not installed, or a model that it refuses.
    """
    if runtime != "onnxruntime":
        raise UserError(f"unknown runtime {runtime!r}; this Vitforge has {', '.join(RUNTIMES)}")
    try:
        from serving.runtime.onnx import OnnxRuntime
    except ImportError as error:
        raise UserError("onnxruntime is not installed; install vitforge[serve]") from error
    return OnnxRuntime(model, threads)
