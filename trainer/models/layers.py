"""How a model goes through its blocks: written out, or as a loop over those that are alike; activations kept or made anew.

A loop is compiled once however many blocks it has. Their parameters stay separate arrays, in checkpoints and for the optimiser:
they are stacked inside the compiled step, where they are copied anyway to compute in bfloat16 (decision record 0013).
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding

Carry = Any  # arrays that go from block to block
Step = Callable[[Any, Carry, Any], Carry]  # (block, carry, its index) → carry

_POLICIES = {
    # What the backward pass keeps of a block: nothing but what enters it; or its products with weights as well.
    "blocks": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


@dataclasses.dataclass(frozen=True)
class Layers:
    """`remat`: none, blocks or dots (Chen et al. 2016, arXiv:1604.06174); `scan`: a loop over runs of blocks that are alike.

    `lies`: where on a mesh the rows (B, …) lie that go from block to block; None leaves it to the compiler.
    """

    remat: str = "none"
    scan: bool = False
    lies: NamedSharding | None = None


WRITTEN_OUT = Layers()


def through(
    blocks: Sequence[nnx.Module], step: Step, carry: Carry, layers: Layers = WRITTEN_OUT
) -> tuple[Carry, list[Carry]]:
    """What `carry` becomes behind the last block, and behind each."""
    seen: list[Carry] = []
    carry, step = _placed(carry, layers), _placing(step, layers)
    if layers.remat == "none" and not layers.scan:
        for index, block in enumerate(blocks):
            carry = step(block, carry, index)
            seen.append(carry)
        return carry, seen
    parts = [nnx.split(block) for block in blocks]
    runs = itertools.groupby(enumerate(parts), key=lambda numbered: _kind(numbered[1]))
    for _, run in runs:
        indices, alike = zip(*run, strict=True)
        carry, behind = _run(indices[0], alike, step, carry, layers)
        seen += behind
    return carry, seen


def _placing(step: Step, layers: Layers) -> Step:
    """`step`, behind which rows lie where they should."""
    return lambda block, carry, index: _placed(step(block, carry, index), layers)


def _placed(carry: Carry, layers: Layers) -> Carry:
    return carry if layers.lies is None else jax.lax.with_sharding_constraint(carry, layers.lies)


def stacked(trees: Sequence[Any]) -> Any:
    """Equal trees of arrays (…) as one of arrays (trees, …)."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def unstacked(tree: Any) -> list[Any]:
    """The inverse of `stacked`."""
    leaves, form = jax.tree.flatten(tree)
    return [jax.tree.unflatten(form, parts) for parts in zip(*map(list, leaves), strict=True)]


def _kind(part: tuple[nnx.GraphDef, nnx.State]) -> Any:
    graph, state = part
    return graph, jax.tree.structure(state), [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(state)]


def _run(
    first: int, parts: Sequence[tuple[nnx.GraphDef, nnx.State]], step: Step, carry: Carry, layers: Layers
) -> tuple[Carry, list[Carry]]:
    """Through blocks that are alike, the first of them at index `first`."""
    graph, states = parts[0][0], [state for _, state in parts]

    def layer(carry: Carry, given: tuple[nnx.State, Any]) -> Carry:
        state, index = given
        return step(nnx.merge(graph, state), carry, index)

    if layers.remat != "none":
        # In a loop nothing merges the two computations; written out, XLA would, and keep what is to be made anew.
        layer = jax.checkpoint(layer, policy=_POLICIES[layers.remat], prevent_cse=not layers.scan)
    if layers.scan and len(parts) > 1 and _keeps_its_form(layer, carry, states[0]):

        def body(carry: Carry, given: tuple[nnx.State, Any]) -> tuple[Carry, Carry]:
            carry = layer(carry, given)
            return carry, carry

        carry, behind = jax.lax.scan(body, carry, (stacked(states), first + jnp.arange(len(parts))))
        return carry, unstacked(behind)
    seen = []
    for index, state in enumerate(states, first):
        carry = layer(carry, (state, index))
        seen.append(carry)
    return carry, seen


def _keeps_its_form(layer: Callable[..., Carry], carry: Carry, state: nnx.State) -> bool:
    """Whether what leaves a block has the shapes of what enters it: tokens that are merged do not."""
    behind = jax.eval_shape(layer, carry, (state, jnp.int32(0)))
    form = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(carry)]
    return form == [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(behind)]
