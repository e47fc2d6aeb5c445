"""What a precision must prove, what int8 gives back to float, and which file is shipped of those that hold."""

import dataclasses

import pytest

from serving.command import UserError
from serving.timing.turns import Timing
from tests.support.small_models import SMALL, random_params, smooth_images
from trainer.export import fastest as choosing
from trainer.export import job, parity
from trainer.export.candidate import Prover, prove_all
from trainer.export.fastest import fastest
from trainer.export.gate import Gate
from trainer.export.int8.observe import Seen
from trainer.export.int8.products import Product, products_of
from trainer.export.int8.write import Calibrated
from trainer.export.measure import top1
from trainer.export.onnx_writer import INPUT, write_onnx


def _prover(least: float, min_top1: float = 0.0) -> Prover:
    """`min_top1` is of labels that are the live model's own first ones."""
    params, images = random_params(SMALL), smooth_images(SMALL, 160)
    reference = parity.reference(SMALL, params, images[:96])
    gate = Gate(
        least,
        min_top1,
        lambda runtime: top1(runtime, reference.names, reference.inputs, reference.answers.argmax(axis=-1)),
    )
    return Prover(write_onnx(SMALL, params), reference, lambda: images[96:], gate, 1)


def _ruin(monkeypatch: pytest.MonkeyPatch, *nodes: str) -> None:
    """Gives what feeds the products `nodes` a range that clips nearly all of it."""
    fit = Calibrated._fit

    def spoilt(self: Calibrated, group: list[Product], seen: Seen) -> None:
        fit(self, group, seen)
        if group[0].node in nodes:
            self._ranges[group[0].tensor] = (-1e-3, 1e-3)

    monkeypatch.setattr(Calibrated, "_fit", spoilt)


def test_where_all_in_eight_bits_agrees_enough_nothing_stays_float() -> None:
    made = _prover(0.8).prove("int8")
    assert (made.precision, list(made.floats)) == ("int8", [])
    assert made.found.top1_agreement >= 0.8
    assert len(made.calibration_hash) == 64


def test_the_worst_product_goes_back_to_float_until_the_agreement_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prover = _prover(0.95)
    ruined = "blocks/1/mlp/fc1/matmul"
    _ruin(monkeypatch, ruined)
    made = prover.prove("int8")
    assert ruined in made.floats
    assert len(made.floats) <= len(products_of(prover.graph)) // 2
    assert made.found.top1_agreement >= 0.95
    nodes = {node.name: node for node in made.graph.graph.node}
    assert nodes[ruined].input[1] == ruined.replace("matmul", "kernel")  # the float weight itself


def test_the_worst_product_goes_back_to_float_until_the_accuracy_that_must_remain_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ruined = "blocks/1/mlp/fc1/matmul"
    _ruin(monkeypatch, ruined)
    assert not _prover(0.0).prove("int8").floats  # any agreement will do
    made = _prover(0.0, min_top1=0.95).prove("int8")
    assert ruined in made.floats


def test_a_file_with_less_than_the_accuracy_that_must_remain_is_refused_with_both_figures() -> None:
    prover = _prover(0.0, min_top1=0.95)
    wrong = dataclasses.replace(prover, gate=dataclasses.replace(prover.gate, top1=lambda _: 0.9431))
    with pytest.raises(UserError, match=r"int8 has a validation top-1 of 94\.31%, and 95\.00% must remain"):
        wrong.prove("int8")
    held, refused = prove_all(wrong, ["fp32", "int8_weights"])  # fp32 is the model itself
    assert [one.precision for one in held] == ["fp32"]
    assert "must remain" in refused["int8_weights"]


def test_what_half_of_the_products_in_float_cannot_save_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    prover = _prover(0.99)
    _ruin(monkeypatch, *(product.node for product in products_of(prover.graph)))
    with pytest.raises(UserError, match=r"asked is 99\.0%"):
        prover.prove("int8")
    held, refused = prove_all(prover, ["fp32", "int8"])
    assert [one.precision for one in held] == ["fp32"]
    assert "asked is 99.0%" in refused["int8"]


def test_where_the_model_itself_has_too_little_accuracy_fewer_bits_are_not_tried() -> None:
    prover = _prover(0.8, min_top1=0.95)
    worse = dataclasses.replace(prover, gate=dataclasses.replace(prover.gate, top1=lambda _: 0.9))
    chosen, tried = job._fastest(worse, 1)
    assert chosen.precision == "fp32"
    assert tried["int8"] == {
        "refused": "not tried: fp32 has a validation top-1 of 90.00%, and 95.00% must remain"
    }


@pytest.mark.parametrize(
    ("times_ms", "shipped"),
    [
        ((5.0, 3.0, 5.1), "int8"),
        ((3.0, 5.0, 3.01), "int8_weights"),  # as fast as fp32, and smaller
        ((3.0, 5.0, 4.0), "fp32"),
    ],
)
def test_the_fastest_is_shipped_and_of_equals_the_smallest(
    monkeypatch: pytest.MonkeyPatch, times_ms: tuple[float, ...], shipped: str
) -> None:
    prover = _prover(0.8)
    made = [prover.prove(precision) for precision in ("fp32", "int8", "int8_weights")]
    made = [dataclasses.replace(one, content=bytes(size)) for one, size in zip(made, (4, 2, 1), strict=True)]
    monkeypatch.setattr(
        choosing, "time_in_turns", lambda *_: [Timing(taken, taken, 0.01, taken) for taken in times_ms]
    )
    choice = fastest(made, INPUT, prover.reference.inputs[:1])
    assert choice.chosen.precision == shipped
    assert [timing.p50_ms for timing in choice.timings] == list(times_ms)
