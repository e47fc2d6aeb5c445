"""The table of path rules, on meshes that need not exist here: a rule asks for names and sizes of axes only."""

import dataclasses
import types
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from tests.support.small_families import DEIT, HYBRID, MIXER, PAIR
from tests.support.small_models import SMALL, UNEVEN, random_params
from trainer import config, description, optim
from trainer.config import MeshShape
from trainer.distributed import rules
from trainer.distributed.mesh import make_mesh
from trainer.guard import nothing_seen
from trainer.models.build import flatten, param_shapes
from trainer.step import TrainState


def mesh(data: int = 2, fsdp: int = 2, model: int = 2) -> Any:
    return types.SimpleNamespace(shape={"data": data, "fsdp": fsdp, "model": model})


FAMILIES = (DEIT, HYBRID, dataclasses.replace(MIXER, tokens_mlp_dim=8), PAIR)


def test_every_rule_is_used_by_some_family_and_fits_the_rank_of_what_it_matches() -> None:
    shapes = {
        f"{model.kind} {name}" if name != "token" else name: leaf.shape
        for model in FAMILIES
        for name, leaf in flatten(param_shapes(model)).items()
    }
    specs = {name: rules.spec_for(name, shape, mesh()) for name, shape in shapes.items()}
    for pattern, axes in rules.RULES:
        matched = [name for name in shapes if rules.re.search(pattern + "$", name)]
        assert matched, pattern
        assert {len(shapes[name]) for name in matched} == {len(axes)}
        assert {specs[name][0] for name in matched} == {PartitionSpec(*axes)}


@pytest.mark.parametrize(
    "name", ["B/16", "R50+ViT-L_32", "DeiT-B_16-distilled", "Mixer-L_16", "LiT-L16L", "LiT-L16Ti"]
)
def test_every_big_array_of_a_published_model_is_cut(name: str) -> None:
    model = description.named(name, (224, 224), 3, 1000)
    # Below lie positions (BERT's: 512 x 1024) and Mixer's token MLPs.
    big = {name: leaf.shape for name, leaf in flatten(param_shapes(model)).items() if leaf.size > 525_000}
    assert len(big) > 12 * 2
    for path, shape in big.items():
        spec, refused = rules.spec_for(path, shape, mesh(1, 4, 2))
        assert "fsdp" in spec, path
        assert ("model" in spec) == ("blocks/" in path), path
        assert refused == []


def test_what_the_optimiser_keeps_lies_where_its_parameter_lies() -> None:
    tx = optim.optimiser(config.experiment("configs/digits.py:teacher", []))
    params = param_shapes(SMALL)
    leaves = flatten({"opt": jax.eval_shape(tx.init, params)})
    for name, leaf in flatten(params).items():
        kept = {path: other for path, other in leaves.items() if path.endswith(f"/{name}")}
        assert {other.shape for other in kept.values()} == {leaf.shape}
        assert len(kept) == 2, name  # both moments of Adam
        for path in kept:
            assert rules.spec_for(path, leaf.shape, mesh()) == (
                rules.spec_for(name, leaf.shape, mesh())[0],
                rules.spec_for(path, leaf.shape, mesh())[1],
            )


def test_a_dimension_that_its_axis_does_not_divide_is_replicated_and_reported() -> None:
    spec, refused = rules.spec_for("blocks/0/attention/query/kernel", (16, 3, 8), mesh(1, 4, 2))
    assert spec == PartitionSpec("fsdp", None, None)
    assert refused == ["blocks/0/attention/query/kernel: 3 is not a multiple of model=2"]
    alike = [*refused, refused[0].replace("0", "1"), "head/kernel: 5 is not a multiple of fsdp=2"]
    assert rules.grouped(refused) == refused
    assert rules.grouped(alike) == [
        "blocks/*/attention/query/kernel (2 times): 3 is not a multiple of model=2",
        "head/kernel: 5 is not a multiple of fsdp=2",
    ]


def test_an_axis_of_one_device_divides_everything() -> None:
    for name, leaf in flatten(param_shapes(UNEVEN)).items():
        assert rules.spec_for(name, leaf.shape, mesh(8, 1, 1))[1] == []


@pytest.mark.parametrize(
    "name",
    [
        "norm/scale",
        "blocks/0/mlp/fc2/bias",
        "pos",
        "cls",
        "dist",
        "stem/root_norm/scale",
        "head/bias",
        "t",
        "step",
    ],
)
def test_small_arrays_are_replicated_without_a_report(name: str) -> None:
    assert rules.spec_for(name, (7,), mesh()) == (PartitionSpec(), [])


def test_a_name_that_only_ends_alike_is_not_matched() -> None:
    assert rules.spec_for("overhead/kernel_of", (8, 8), mesh()) == (PartitionSpec(), [])


def test_a_whole_training_state_has_a_place_for_every_leaf() -> None:
    params = param_shapes(UNEVEN)
    tx = optim.optimiser(config.experiment("configs/digits.py:teacher", []))
    state = TrainState(
        jax.ShapeDtypeStruct((), int), params, jax.eval_shape(tx.init, params), params, nothing_seen()
    )
    placed, reports = rules.shardings(state, make_mesh(MeshShape(-1, 1, 1)))
    assert jax.tree.structure(placed) == jax.tree.structure(state)
    assert reports == []


def test_host_arrays_arrive_as_they_are() -> None:
    host = random_params(SMALL)
    there = rules.place(host, make_mesh(MeshShape(-1, 1, 1)))
    assert jax.tree.all(jax.tree.map(np.array_equal, there, host))
