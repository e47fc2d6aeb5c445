"""One graph in one precision whose file says what the live model says, or a refusal."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence

import onnx

from serving.command import UserError, progress
from serving.runtime.base import Runtime
from serving.runtime.select import open_runtime
from trainer.export import parity
from trainer.export.gate import Gate
from trainer.export.graph import Array
from trainer.export.int8.write import Calibrated, in_precision
from trainer.export.parity import Parity, Reference

RUNTIME = "onnxruntime"
_WAY_OUT = "nothing was written: export fp32, calibrate int8 with more images, or lower --min_agreement or --min_top1"
_COMPARED = 64  # inputs that rank the products


class Refused(UserError):
    """A precision that the gate does not let through, and `why`."""

    def __init__(self, why: str) -> None:
        super().__init__(f"{why}; {_WAY_OUT}")
        self.why = why


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A proven file; `floats` are the products that int8 left in float, worst first."""

    precision: str
    graph: onnx.ModelProto
    content: bytes
    runtime: Runtime
    found: Parity
    floats: Sequence[str] = ()
    calibration_hash: str = ""  # of what int8 was calibrated on


@dataclasses.dataclass(frozen=True)
class Prover:
    """What every precision of one graph is made from and held against."""

    graph: onnx.ModelProto
    reference: Reference
    calibration: Callable[[], Array]
    gate: Gate
    threads: int

    def prove(self, precision: str) -> Candidate:
        """The candidate of one of `trainer.precisions`.

        Raises:
          UserError: when it does not say the same: equal logits in fp32, in the others what the gate asks.
        """
        if precision == "int8":
            return self._int8()
        made = self._candidate(precision, in_precision(self.graph, precision, self.calibration, self.threads))
        if precision == "fp32":
            parity.require_equal(made.found)
        elif why := self._refusal(made):
            raise Refused(why)
        return made

    def _int8(self) -> Candidate:
        """All products in eight bits; where the gate refuses that, the worst in float, twice as many each time, up to half."""
        images = self.calibration()
        calibrated = Calibrated(self.graph, images, self.threads)
        made, floats = self._candidate("int8", calibrated.graph()), list[str]()
        if why := self._refusal(made):
            worst = self._worst_first(calibrated)
            for count in _doubling(len(worst) // 2):
                made.runtime.close()
                floats = worst[:count]
                made = self._candidate("int8", calibrated.graph(floats))
                if not (why := self._refusal(made)):
                    break
        if why:
            raise Refused(why)
        calibrated_on = hashlib.sha256(images.tobytes()).hexdigest()
        return dataclasses.replace(made, floats=floats, calibration_hash=calibrated_on)

    def _refusal(self, made: Candidate) -> str:
        return self.gate.why_refused(made.precision, made.found, made.runtime)

    def _worst_first(self, calibrated: Calibrated) -> list[str]:
        """The products by how far each alone, in eight bits, takes the answers from the live model's."""
        few = self.reference.first(_COMPARED)
        missed = {}
        with progress(len(calibrated.products), "int8, each product alone") as bar:
            for name in calibrated.products:
                others = [other for other in calibrated.products if other != name]
                runtime = self._open(calibrated.graph(others).SerializeToString())
                missed[name] = few.missed(runtime)
                runtime.close()
                bar.advance()
        return sorted(calibrated.products, key=missed.__getitem__, reverse=True)

    def _candidate(self, precision: str, graph: onnx.ModelProto) -> Candidate:
        content = graph.SerializeToString()
        runtime = self._open(content)
        return Candidate(precision, graph, content, runtime, self.reference.compare(runtime))

    def _open(self, content: bytes) -> Runtime:
        return open_runtime(content, RUNTIME, self.threads)


def _doubling(most: int) -> Iterator[int]:
    """1, 2, 4, … and at last `most`."""
    count = 1
    while count < most:
        yield count
        count *= 2
    if most:
        yield most


def prove_all(prover: Prover, precisions: Sequence[str]) -> tuple[list[Candidate], dict[str, str]]:
    """The candidates of `precisions` that hold, and why the others do not, by precision."""
    held, refused = [], {}
    for precision in precisions:
        try:
            held.append(prover.prove(precision))
        except UserError as error:
            refused[precision] = error.why if isinstance(error, Refused) else str(error)
    return held, refused
