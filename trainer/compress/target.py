"""A stated shape: the sizes that must remain, given one by one or by the name of a published model, and the plan that leaves them.

Sizes are taken exactly as stated; no rounding is applied to them. What no size is (pooling, GELU, a distillation token) stays the
teacher's, also where a named model has it otherwise.
"""

import dataclasses

from serving.command import UserError
from trainer.compress import allocate, width
from trainer.compress.allocate import units_of
from trainer.compress.cells import groups
from trainer.compress.plan import Layer, Plan
from trainer.compress.scores import Scores
from trainer.config.compression import Shape
from trainer.description import ViT, named


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The sizes of a ViT that cutting can lower; of blocks that differ, the largest."""

    num_layers: int
    hidden_size: int
    num_heads: int
    qk_dim: int
    v_dim: int
    mlp_dim: int
    stem_groups: int  # of GroupNorm's groups of inner channels of a stem's unit; 0 without one


def sizes_of(model: ViT) -> Sizes:
    """The sizes of `model`."""
    most = {
        name: max((getattr(block, name) for block in model.blocks), default=0)
        for name in ("num_heads", "qk_dim", "v_dim", "mlp_dim")
    }
    stem = max(groups(model.stem), default=0)
    return Sizes(num_layers=len(model.blocks), hidden_size=model.width, stem_groups=stem, **most)


def asked(shape: Shape, teacher: ViT) -> Sizes:
    """What `shape` leaves of `teacher`: its own size wherever none is stated.

    Raises:
      UserError: when the named model is unknown or of another kind, or a size is above the teacher's.
    """
    has = dataclasses.asdict(sizes_of(teacher))
    stated = dataclasses.asdict(_of_named(shape.target, teacher)) if shape.target else vars(shape)
    said_by = f"shape.target={shape.target}: " if shape.target else ""
    wanted = {name: stated[name] or size for name, size in has.items()}
    above = [
        f"{name}={wanted[name]} is above the teacher's {has[name]}"
        for name in has
        if wanted[name] > has[name]
    ]
    if above:
        listed = ", ".join(above if said_by else [f"shape.{problem}" for problem in above])
        raise UserError(f"{said_by}{listed}; cutting only makes smaller: state what the teacher has, or less")
    if wanted["hidden_size"] < teacher.width:
        width.check_width(teacher, wanted["hidden_size"])
    return Sizes(**wanted)


def _of_named(target: str, teacher: ViT) -> Sizes:
    model = named(target, teacher.image_size, teacher.channels, teacher.num_classes)
    if not isinstance(model, ViT):
        raise UserError(f"shape.target={target} is of kind {model.kind!r}, the teacher a ViT; name a ViT")
    stems = [one.stem and (one.stem.width, one.stem.stages) for one in (model, teacher)]
    for name, theirs, own in (
        ("patch_size", model.patch_size, teacher.patch_size),
        ("stem of width and stages", *stems),
    ):
        if theirs != own:
            raise UserError(
                f"shape.target={target} has {name} {theirs}, the teacher {own}, which cutting does not change; "
                "name a model with the teacher's, or state sizes: shape.num_layers, hidden_size, num_heads, mlp_dim"
            )
    return sizes_of(model)


def plan(teacher: ViT, scores: Scores, dropped: set[int], sizes: Sizes) -> Plan:
    """The plan that leaves `sizes` in every layer not `dropped`.

    Raises:
      UserError: when a layer of the teacher has less than that.
    """
    has = sizes_of(teacher)
    heads, neurons = (
        0 if getattr(sizes, name) == getattr(has, name) else getattr(sizes, name)
        for name in ("num_heads", "mlp_dim")
    )
    chosen = allocate.stated(teacher, scores, dropped, heads, neurons)
    layers = tuple(_thinned(layer, sizes, has) for layer in chosen.layers)
    units = units_of(teacher, scores, [min(sizes.stem_groups, own) for own in groups(teacher.stem)])
    return Plan(layers, 0 if sizes.hidden_size == teacher.width else sizes.hidden_size, stem=units)


def _thinned(layer: Layer, sizes: Sizes, has: Sizes) -> Layer:
    """`layer` with the stated dims per head; dims that are the teacher's largest ask nothing of its smaller layers."""
    if not layer.heads:
        return layer

    def dim(name: str) -> int:
        wanted, own = getattr(sizes, name), getattr(layer, name)
        if wanted > own and wanted != getattr(has, name):
            raise UserError(
                f"shape.{name}={wanted} is above the teacher's {own} in layer {layer.source}; cutting only makes smaller"
            )
        return min(wanted, own)

    return dataclasses.replace(layer, qk_dim=dim("qk_dim"), v_dim=dim("v_dim"))


def report(teacher: ViT, sizes: Sizes, model: ViT) -> dict[str, dict[str, int]]:
    """Every size of the teacher, as asked, and as it came out."""
    has, actual = sizes_of(teacher), sizes_of(model)
    return {
        field.name: {
            "teacher": getattr(has, field.name),
            "asked": getattr(sizes, field.name),
            "actual": getattr(actual, field.name),
        }
        for field in dataclasses.fields(Sizes)
        if field.name != "stem_groups" or teacher.stem
    }
