"""What of the peer's script needs no torch: its count of MACs is ours, and its search finds the smallest ratio."""

import dataclasses

from tools.bench_compression import peer_inputs, torch_peer
from trainer import description
from trainer.description import Block, ViT, uniform

TEACHER = ViT((12, 8), 1, 4, 16, uniform(2, 2, 8, 24), 5, pooling="gap")


def test_the_peers_macs_are_those_of_our_description() -> None:
    shape = peer_inputs._shape(TEACHER)
    assert torch_peer.macs(shape, [(2, 8, 24)] * 2) == description.macs(TEACHER)
    cut = dataclasses.replace(TEACHER, blocks=(Block(2, 4, 4, 12), Block(2, 8, 8, 4)))
    assert torch_peer.macs(shape, [(2, 4, 12), (2, 8, 4)]) == description.macs(cut)


def test_the_ratio_is_the_smallest_whose_cost_is_within_the_budget() -> None:
    def cost(ratio: float) -> int:
        return 4 * round(25 * (1 - ratio))  # falls in steps, as rounded sizes do

    for budget in (100, 99, 57, 4):
        ratio = torch_peer.least_ratio(cost, budget, steps=64)
        assert cost(ratio) <= budget
        assert ratio == 0 or cost(ratio - 1 / 64) > budget


def test_a_library_that_cuts_nothing_near_1_does_not_hide_the_ratio() -> None:
    assert torch_peer.least_ratio(lambda ratio: 100 if ratio > 0.9 else round(100 * (1 - ratio)), 50) == 0.5


def test_a_budget_that_no_ratio_meets_gets_the_cheapest_one() -> None:
    costs = {0.0: 20, 0.25: 15, 0.5: 12, 0.75: 18}
    assert torch_peer.least_ratio(costs.__getitem__, 9, steps=4) == 0.5
