"""What may change when a run goes on."""

import contextlib
import dataclasses

import pytest

from serving.command import UserError
from trainer import config
from trainer.config import (
    MAY_CHANGE_ON_RESUME,
    Experiment,
    resolved_text,
)
from trainer.config.fields import flatten

TEACHER = "configs/digits.py:teacher"


@pytest.fixture
def teacher() -> Experiment:
    return config.experiment(TEACHER, [])


def test_every_changed_key_is_refused_by_name_with_both_values(teacher: Experiment) -> None:
    stored = dataclasses.replace(teacher, base_lr=0.25, batch=64, log_every=7)
    changed = dataclasses.replace(teacher, base_lr=0.5, batch=32, log_every=8)
    with pytest.raises(
        UserError, match=r"run: base_lr is 0.25 there, 0.5 now; batch is 64 there, 32 now; give"
    ):
        config.refuse_changes(resolved_text(stored), changed)


def test_a_key_that_the_stored_run_did_not_have_is_refused(teacher: Experiment) -> None:
    stored = resolved_text(teacher).replace(f"wd = {teacher.wd}\n", "")
    with pytest.raises(UserError, match=f"wd is 'absent' there, {teacher.wd} now"):
        config.refuse_changes(stored, teacher)


def test_keys_that_may_change_do_and_no_other_key_does(teacher: Experiment) -> None:
    """Each key is changed alone, so that a new key cannot be forgotten."""
    stored = resolved_text(teacher).splitlines()
    refused = set()
    for name in flatten(teacher):
        changed = [f"{name} = [1]" if line.startswith(f"{name} = ") else line for line in stored]
        with contextlib.suppress(UserError):
            config.refuse_changes("\n".join(changed), teacher)
            continue
        refused.add(name)
    free = "data_dir pretrained shape_of teacher_weights teacher_cache text.vocab remat scan_blocks dtype accum_steps "
    free += "stall_after_s profile_steps compile_cache batch_eval log_every eval_every checkpoint_every keep_last keep_best "
    free += "workers mesh.data mesh.fsdp mesh.model mesh.slices"
    assert flatten(teacher).keys() - refused == set(free.split()) == MAY_CHANGE_ON_RESUME
