"""The compiled training step itself."""

import jax

from tests.support import small_steps


def test_the_state_before_a_step_is_given_up_to_the_one_behind_it() -> None:
    """Else a device would hold parameters and what the optimiser keeps twice."""
    steps = small_steps.Steps()
    before = jax.tree.leaves((steps.state.params, steps.state.opt))
    steps.take(small_steps.batch())
    large = [leaf for leaf in before if leaf.size > 1]
    assert large
    assert all(leaf.is_deleted() for leaf in large)
