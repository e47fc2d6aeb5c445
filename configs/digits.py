"""The digits that come with the installation: 1,797 handwritten digits, 8×8 grey pixels shown at 16×16.

    python -m trainer.main --config=configs/digits.py:teacher --workdir=runs/teacher
    python -m trainer.main --config=configs/digits.py:student --workdir=runs/student \
        --config.pretrained=runs/pruned --config.teacher_weights=runs/teacher
    python -m trainer.main --config=configs/digits.py:scratch --workdir=runs/scratch --config.shape_of=runs/pruned

Two cores of an AMD EPYC: teacher 41 s, student 21 s, scratch 14 s. Test top-1: teacher 98.3, student 98.6, scratch 93.6 %.
"""

import ml_collections

_ROLES = ("teacher", "student", "scratch")


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The teacher; the student cut from it, distilled; or the student's shape from scratch, for as many steps."""
    role = arg or "teacher"
    if role not in _ROLES:
        raise ValueError(f"argument {role!r} must be one of {', '.join(_ROLES)}")
    config = ml_collections.ConfigDict()
    config.dataset = "digits"
    config.image_size = 16
    config.aug = "shift"
    config.model = "ViT-digits" if role == "teacher" else ""
    config.distill_weight = 0.9 if role == "student" else 0.0
    config.batch = 64
    config.batch_eval = 128
    config.total_steps = 700 if role == "teacher" else 400
    config.warmup_steps = 70 if role == "teacher" else 40
    # The student starts from repaired weights, not from noise.
    config.base_lr = 5e-4 if role == "student" else 2e-3
    config.wd = 0.05
    config.eval_every = 200
    config.checkpoint_every = 200
    return config
