"""The one training loop. Training from scratch, fine-tuning and distillation differ by the parts they are handed.

Order of a step: take the batch, step, log, evaluate, save, listen for preemption.
"""

import dataclasses
import hashlib
import json
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
from jax.sharding import Mesh

from serving.command import ExitCode, UserError, progress
from trainer import description, memory, optim, step
from trainer.cached_logits import CachedLogits
from trainer.checkpoint import Card, TrainCheckpoints, holds_training, load_card, steps
from trainer.config import Experiment, refuse_changes
from trainer.data.global_batch import input_share, to_global
from trainer.data.pipeline import train_batches
from trainer.distributed import rules
from trainer.distributed.holding import hold_for_all
from trainer.distributed.mesh import check_batch, make_mesh
from trainer.evaluation import evaluate
from trainer.metrics import MetricsWriter
from trainer.models.build import Params
from trainer.models.computing import in_dtype
from trainer.parts import Parts, assemble
from trainer.preemption import Preemption
from trainer.skips import Skips
from trainer.step import Batch, Frozen, TrainState
from trainer.teacher import stored_answers


def train(experiment: Experiment, workdir: Path) -> dict[str, object]:
    """Trains as `experiment` says, going on from the newest checkpoint in `workdir` if there is one.

    Returns the result of the run: stage, steps, accuracy on the validation split, parameters, MACs, training speed.

    Raises:
      UserError: for bad input, for a workdir of another run or in use, and (code 42, or 130 after Ctrl-C) when asked to stop,
        with the state saved.
    """
    with Preemption() as preemption:
        _refuse_a_model(workdir)
        parts = assemble(experiment)
        mesh = mesh_of(experiment)
        workdir.mkdir(parents=True, exist_ok=True)
        with hold_for_all(workdir, "training"):
            return _Run(parts, mesh, workdir).to_the_end(preemption)


def mesh_of(experiment: Experiment) -> Mesh:
    """The mesh that `experiment` asks for; refuses devices that do not fit it, and batches that they do not divide."""
    mesh = make_mesh(experiment.mesh)
    check_batch(mesh, experiment.batch, "batch", experiment.accum_steps)
    check_batch(mesh, experiment.batch_eval, "batch_eval")
    return mesh


_LEAVING = {ExitCode.PREEMPTED: "preempted", ExitCode.INTERRUPTED: "interrupted"}


class _Run:
    """The compiled steps, the state and the record of one run."""

    def __init__(self, parts: Parts, mesh: Mesh, workdir: Path) -> None:
        self._experiment, self._parts, self._mesh, self._workdir = parts.experiment, parts, mesh, workdir
        self._checkpoints = TrainCheckpoints(workdir, parts.experiment.keep_last)
        try:
            self._build()
        except BaseException:
            self._checkpoints.close()
            raise

    def _build(self) -> None:
        experiment, parts, card = self._experiment, self._parts, self._parts.card
        self._answers = self._stored_answers()
        tx = optim.optimiser(experiment)
        fresh, placed, undivided = step.init_state(
            card.classifier, tx, self._mesh, experiment.seed, experiment.ema_decay > 0
        )
        self._state = self._first_state(fresh)
        teacher = parts.teacher if self._answers is None else None
        self._teacher = (
            Frozen(teacher.description, rules.place(in_dtype(teacher.params, experiment.dtype), self._mesh))
            if teacher
            else None
        )
        self._train_step = step.make_train_step(
            experiment,
            card.classifier,
            card.preprocess,
            tx,
            parts.objective,
            self._teacher.model if self._teacher else None,
            placed,
            self._mesh,
        )
        self._eval_step = step.make_eval_step(card.classifier, card.preprocess, self._mesh)
        self._start = int(self._state.step)
        skips = Skips(len(parts.dataset.train), experiment.seed, experiment.batch)
        self._metrics = MetricsWriter(self._workdir, self._start, skips)
        if jax.process_index() == 0:
            (self._workdir / "config.txt").write_text(card.meta["config_text"])
            _announce(experiment, card, self._start, undivided, self._mesh.shape)

    def _stored_answers(self) -> CachedLogits | None:
        """The teacher's answers where they are stored; filled first, before anything large is on the device."""
        teacher, parts = self._parts.teacher, self._parts
        if teacher is None or not self._experiment.teacher_cache:
            return None
        spec = parts.card.preprocess
        return stored_answers(self._experiment, teacher, parts.dataset, spec, self._mesh)

    def _first_state(self, fresh: TrainState) -> TrainState:
        latest = self._checkpoints.latest_step()
        if latest is None:
            return (
                fresh if self._parts.pretrained is None else self._begun_with(self._parts.pretrained, fresh)
            )
        _check_same_run(self._workdir, self._experiment, self._parts.card)
        number = jax.device_put(latest, fresh.step.sharding).astype(fresh.step.dtype)
        return dataclasses.replace(fresh, step=number, **self._checkpoints.restore(fresh))

    def _begun_with(self, params: Params, fresh: TrainState) -> TrainState:
        ema = None if fresh.ema is None else rules.place(params, self._mesh)
        return dataclasses.replace(fresh, params=rules.place(params, self._mesh), ema=ema)

    def to_the_end(self, preemption: Preemption) -> dict[str, object]:
        """Runs the loop and reports."""
        try:
            seconds = self._loop(preemption)
            score = self._evaluate(self._experiment.total_steps)
        finally:
            self._checkpoints.close()
        trained = (self._experiment.total_steps - self._start) * self._experiment.batch
        model = self._parts.card.classifier
        return {
            "stage": self._parts.card.meta["stage"],
            "workdir": str(self._workdir),
            "steps": self._experiment.total_steps,
            "resumed_from": self._start,
            "validation_top1": score["top1"],
            "validation_loss": score["loss"],
            "params": description.param_count(model),
            "macs": description.macs(model),
            "train_images_per_s": round(trained / seconds, 1) if trained else None,
        }

    def _loop(self, preemption: Preemption) -> float:
        experiment, began_s = self._experiment, time.monotonic()
        label = str(self._parts.card.meta["stage"])
        with progress(experiment.total_steps, label, self._start) as bar:
            for number, batch in enumerate(self._batches(), self._start + 1):
                if number == self._start + 1:
                    with preemption.compiling():
                        metrics = self._first_step(batch)
                else:
                    metrics = self._step(batch)
                last = number == experiment.total_steps
                self._metrics.queue(number, metrics, number % experiment.log_every == 0 or last)
                # Before saving: who goes on from a checkpoint has the whole record up to it.
                if number % experiment.eval_every == 0 and not last:
                    self._evaluate(number)
                if number % experiment.checkpoint_every == 0 or last:
                    self._save(number)
                bar.advance(note=self._note())
                if not last and preemption.due(number):
                    self._leave(number, preemption.exit_code)
        self._metrics.flush()
        return time.monotonic() - began_s

    def _first_step(self, batch: Batch) -> Mapping[str, jax.Array]:
        """Compiles and steps, to the end: here it shows whether memory is enough."""
        try:
            return jax.block_until_ready(self._step(batch))
        except jax.errors.JaxRuntimeError as error:
            raise memory.refusal(error, self._experiment, self._mesh) or error from error

    def _step(self, batch: Batch) -> Mapping[str, jax.Array]:
        teacher = self._teacher.params if self._teacher else None
        self._state, metrics = self._train_step(self._state, batch, teacher)
        return metrics

    def _batches(self) -> Iterator[Batch]:
        experiment = self._experiment
        share, shares = input_share(self._mesh)
        batches = train_batches(
            self._parts.dataset.train,
            self._parts.card.preprocess,
            seed=experiment.seed,
            aug=experiment.aug,
            randaug=experiment.randaug,
            batch=experiment.batch,
            start_step=self._start,
            process_index=share,
            process_count=shares,
            workers=experiment.workers,
            view_epochs=experiment.teacher_epochs,
        )
        for _ in range(self._start, experiment.total_steps):
            batch = next(batches)
            if self._answers is not None:
                batch |= self._answers.read(batch["index"], batch["epoch"])
            yield to_global(batch, self._mesh)

    def _save(self, number: int) -> None:
        self._metrics.flush()
        position = {"step": number, "next_example": number * self._experiment.batch}
        card = self._parts.card
        self._checkpoints.save(self._state, dataclasses.replace(card, meta={**card.meta, **position}))

    def _evaluate(self, number: int) -> dict[str, float]:
        source, spec = self._parts.dataset.validation, self._parts.card.preprocess
        score = evaluate(
            self._eval_step, self._state.evaluated, source, spec, self._experiment.batch_eval, self._mesh
        )
        self._metrics.flush()
        self._metrics.write(number, {f"validation_{name}": value for name, value in score.items()})
        return score

    def _note(self) -> str:
        latest = self._metrics.latest
        return f"loss {latest['loss']:.3f} top1 {latest['top1']:.2f}" if latest else ""

    def _leave(self, number: int, exit_code: ExitCode) -> None:
        if number % self._experiment.checkpoint_every:
            self._save(number)
        self._metrics.flush()
        raise UserError(
            f"{_LEAVING[exit_code]}: saved step {number} in {self._workdir}; run the same command to go on",
            exit_code,
        )


def _refuse_a_model(workdir: Path) -> None:
    """Refuses a workdir with what compression wrote, or another model alone: there is no training to go on with."""
    if steps(workdir) and not holds_training(workdir):
        stage = load_card(workdir).meta["stage"]
        raise UserError(
            f"{workdir} holds a {stage} model, not a training run; give another --workdir "
            f"(to train this model further, with --config.pretrained={workdir})"
        )


def _check_same_run(workdir: Path, experiment: Experiment, card: Card) -> None:
    stored = load_card(workdir)
    refuse_changes(stored.meta["config_text"], experiment)
    for name, old, new in (
        ("a model of another shape", *map(_shape, (stored, card))),
        ("other preprocessing", stored.preprocess, card.preprocess),
        ("other classes", *(list(one.labels) for one in (stored, card))),
        ("another data set", *(one.meta["fingerprint"] for one in (stored, card))),
        ("other pretrained weights", *(one.meta.get("pretrained_hash", "") for one in (stored, card))),
        ("another teacher", *(one.meta["teacher_hash"] for one in (stored, card))),
    ):
        if old != new:
            raise UserError(
                f"{workdir} holds a run with {name}: {old or 'none'} there, {new or 'none'} now; "
                "give another --workdir, or what that run began with"
            )


def _shape(card: Card) -> str:
    """The model's size, and the sha256 of its description, in which any two differ."""
    text = json.dumps(card.to_json()["description"], sort_keys=True)
    size = description.param_count(card.classifier)
    return f"{size:,} parameters (description {hashlib.sha256(text.encode()).hexdigest()[:12]})"


def _announce(
    experiment: Experiment, card: Card, start: int, undivided: list[str], mesh: Mapping[str, int]
) -> None:
    model = card.classifier
    size = f"{description.param_count(model):,} parameters, {description.macs(model) / 1e6:.2f} MMACs"
    origin = f"resumed from step {start}" if start else "from step 0"
    if start >= experiment.total_steps:
        origin = f"already complete at step {start}, nothing to train; for another run give another --workdir"
    axes = " ".join(f"{axis}={devices}" for axis, devices in mesh.items())
    lines = [f"{card.meta['stage']}: {size}; mesh {axes}; batch {experiment.batch}; {origin}"]
    lines.append(f"configuration {card.meta['config_hash'][:12]}, whole in config.txt of the workdir")
    lines += [f"replicated: {line}" for line in undivided]
    print("\n".join(lines), file=sys.stderr)
