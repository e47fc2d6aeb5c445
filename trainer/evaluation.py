"""Accuracy of a model on one split: every example counted exactly once, on any number of processes and devices."""

from collections.abc import Callable, Iterator, Sequence

from jax.sharding import Mesh

from serving.command import UserError
from serving.preprocess import PreprocessSpec
from trainer.checkpoint import Card
from trainer.config import MeshShape
from trainer.data.global_batch import input_share, to_global
from trainer.data.pipeline import eval_batches
from trainer.data.source import Dataset, ImageSource
from trainer.distributed.mesh import make_mesh
from trainer.models.build import Params
from trainer.step import Batch, Metrics

Score = dict[str, float]
_FEW = 12  # names in a message


def evaluate(
    eval_step: Callable[[Params, Batch], Metrics],
    params: Params,
    source: ImageSource,
    spec: PreprocessSpec,
    batch: int,
    mesh: Mesh,
    alive: Callable[[], None] = lambda: None,
) -> Score:
    """top1 (a fraction), loss (nats) and count over all of `source`, in padded batches whose padding is masked.

    `alive` is called after each of them.
    """
    sums = {"loss": 0.0, "correct": 0.0, "count": 0.0}
    for found in asked(eval_step, params, source, spec, batch, mesh):
        for name, value in found.items():
            sums[name] += float(value)
        alive()
    return {
        "top1": sums["correct"] / sums["count"],
        "loss": sums["loss"] / sums["count"],
        "count": sums["count"],
    }


def asked(
    step: Callable[[Params, Batch], Batch],
    params: Params,
    source: ImageSource,
    spec: PreprocessSpec,
    batch: int,
    mesh: Mesh,
) -> Iterator[Batch]:
    """What `step` says of every padded batch of `source`, in an order that is the same for all processes."""
    share, shares = input_share(mesh)
    for padded in eval_batches(source, spec, batch=batch, process_index=share, process_count=shares):
        yield step(params, to_global(padded, mesh))


def one_process_mesh() -> Mesh:
    """All devices as replicas: what evaluation alone needs."""
    return make_mesh(MeshShape(data=-1, fsdp=1, model=1))


def few(names: Sequence[str]) -> str:
    """The first of many names, and how many there are."""
    more = f" … ({len(names):,} in all)" if len(names) > _FEW else ""
    return ", ".join(names[:_FEW]) + more


def check_classes(card: Card, data: Dataset) -> None:
    """Refuses to score a model on classes that it was not trained for.

    Raises:
      UserError: naming both.
    """
    if card.labels != data.class_names:
        asked, known = few(data.class_names), few(card.labels)
        raise UserError(
            f"data set {data.name} has the classes {asked}, the model knows {known}; use a data set of its classes"
        )
