"""What this CPU can do, and whether a model file needs more: asked by the server when it loads, by the exporter beforehand."""

import hashlib
import logging
import platform
from collections.abc import Sequence
from pathlib import Path

from serving.command import UserError

# Activations are unsigned, weights signed: the pairing that VNNI multiplies directly, and ARM's dot product after it.
INT8 = ("avx512_vnni", "avx_vnni", "asimddp")
_CPU_INFO = Path("/proc/cpuinfo")
_log = logging.getLogger(__name__)


def supports(required: Sequence[str]) -> bool | None:
    """Whether this CPU has one of the `required` features (none needed: True); None where the system does not say."""
    present = _features()
    if required and not present:
        return None
    return not required or bool(set(required) & present)


def require_cpu(required: Sequence[str], what: str, instead: str) -> None:
    """Refuses `what` on a CPU that has none of the `required` features; warns where the system does not say.

    int8 is wrong rather than slow there: x86 without VNNI adds products of 8 bits in 16, which saturate.

    Raises:
      UserError: naming the features, and what to do `instead`.
    """
    can = supports(required)
    if can is None:
        _log.warning(
            "%s needs a CPU with one of %s; this system does not say what it has, so its golden answers decide",
            what,
            ", ".join(required),
        )
    elif not can:
        raise UserError(
            f"{what} needs a CPU with one of {', '.join(required)}, which this one lacks; {instead}"
        )


def identity() -> dict[str, str]:
    """This CPU's model, and a hash of what it can do: timings hold for such CPUs only."""
    features = hashlib.sha256(" ".join(sorted(_features())).encode()).hexdigest()[:16]
    return {"cpu": _line("model name") or platform.processor() or platform.machine(), "features": features}


def _features() -> set[str]:
    """What Linux says that this CPU can do; nothing elsewhere."""
    return set((_line("flags") or _line("Features")).split())


def _line(name: str) -> str:
    """What Linux says of the first core under `name`; nothing elsewhere."""
    if not _CPU_INFO.is_file():
        return ""
    pairs = (line.partition(":") for line in _CPU_INFO.read_text().splitlines())
    return next((value.strip() for label, _, value in pairs if label.strip() == name), "")
