"""The one training loop. Training from scratch, fine-tuning and distillation differ by the parts they are handed.

Order of a step: take the batch, step, log, evaluate, save, listen for preemption.
"""

import contextlib
import dataclasses
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import jax
from jax.sharding import Mesh

from serving.command import ExitCode, UserError, progress
from trainer import description, memory, optim, step
from trainer.cached_logits import CachedLogits
from trainer.checkpoint import Card, TrainCheckpoints
from trainer.config import Experiment
from trainer.config.fitting import require_fit
from trainer.data.global_batch import input_share, to_global
from trainer.data.pipeline import train_batches
from trainer.distributed import rules
from trainer.distributed.agreement import require_same
from trainer.distributed.holding import hold_for_all
from trainer.distributed.mesh import make_mesh
from trainer.distributed.peers import ending_without_peers
from trainer.evaluation import evaluate
from trainer.metrics import MetricsWriter
from trainer.models.build import Params
from trainer.models.computing import in_dtype
from trainer.pair_parts import assemble_pair
from trainer.parts import Parts, assemble
from trainer.preemption import Preemption
from trainer.profiler import Profiler
from trainer.rates import Rates, flops_per_image
from trainer.same_run import evaluation_is_done, refuse_a_model, require_same_run
from trainer.skips import Skips
from trainer.step import Batch, Frozen, TrainState
from trainer.tasks import eval_step_of, task_of
from trainer.teacher import stored_answers
from trainer.watchdog import Watchdog


def train(experiment: Experiment, workdir: Path) -> dict[str, object]:
    """Trains as `experiment` says, going on from the newest checkpoint in `workdir` if there is one.

    Returns the result of the run: stage, steps, accuracy on the validation split, parameters, MACs, training speed.

    Raises:
      UserError: for bad input, for a workdir of another run or in use, and (code 42, or 130 after Ctrl-C) when asked to stop,
        with the state saved.
    """
    with Preemption() as preemption, ending_without_peers():
        refuse_a_model(workdir)
        _keep_compiled(experiment.compile_cache)
        parts = assemble_pair(experiment) if experiment.pairs else assemble(experiment)
        mesh = mesh_of(experiment)
        workdir.mkdir(parents=True, exist_ok=True)
        _require_agreement(parts)
        with (
            hold_for_all(workdir, "training"),
            Watchdog(workdir, experiment.stall_after_s) as watchdog,
        ):
            return _Run(parts, mesh, workdir, watchdog, preemption).to_the_end()


def _require_agreement(parts: Parts) -> None:
    """Refuses processes that would learn something else."""
    meta = parts.card.meta
    require_same("a configuration", meta["config_text"], "start all with the same recipe and flags")
    remedy = "give all hosts the same files (bad images that one of them could not read count, too)"
    require_same(f"images of {meta['dataset']}", meta["fingerprint"], remedy)
    require_same("first weights", meta.get("pretrained_hash", ""), "give all hosts the same file")
    require_same("a teacher", meta["teacher_hash"], "give all hosts the same file")


def mesh_of(experiment: Experiment) -> Mesh:
    """The mesh that `experiment` asks for; refuses devices that do not fit it, and batches that they do not divide."""
    require_fit(experiment, jax.device_count())
    return make_mesh(experiment.mesh)


def _keep_compiled(folder: str) -> None:
    """Lets JAX keep compiled programs in `folder`, if any, and take them from there."""
    if not folder:
        return
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"compile_cache={folder} cannot be made ({error}); give a folder that can") from error
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


_LEAVING = {ExitCode.PREEMPTED: "preempted", ExitCode.INTERRUPTED: "interrupted"}


class _Run:
    """The compiled steps, the state and the record of one run."""

    def __init__(
        self, parts: Parts, mesh: Mesh, workdir: Path, watchdog: Watchdog, preemption: Preemption
    ) -> None:
        self._experiment, self._parts, self._mesh, self._workdir = parts.experiment, parts, mesh, workdir
        self._watchdog, self._preemption = watchdog, preemption
        self._checkpoints = TrainCheckpoints(workdir, parts.experiment.keep_last, parts.experiment.keep_best)
        self._rates = Rates(parts.experiment.batch)
        self._scores: dict[int, dict[str, float]] = {}  # of validation, by step
        self._saved = self._checkpoints.latest_step()
        try:
            with (
                self._rates.spending("start"),
                ending_without_peers(),
                memory.explained(partial(memory.refusal_of_state, mesh=mesh)),
            ):
                self._build()
        except BaseException:
            self._checkpoints.close()
            raise

    def _build(self) -> None:
        experiment, parts, card = self._experiment, self._parts, self._parts.card
        said = [] if self._saved is None else require_same_run(self._workdir, experiment, card)
        self._owes_evaluation = self._saved is not None and not evaluation_is_done(self._workdir)
        self._answers = self._stored_answers()
        tx = optim.optimiser(experiment)
        fresh, placed, undivided = step.init_state(
            card.description, tx, self._mesh, experiment.seed, experiment.ema_decay > 0
        )
        self._state = self._first_state(fresh)
        said += [f"replicated: {line}" for line in rules.grouped(undivided)]
        teacher = parts.teacher if self._answers is None else None
        if teacher:
            divided = rules.shardings(teacher.params, self._mesh)[1]
            said += [f"replicated, of the teacher: {line}" for line in rules.grouped(divided)]
        self._teacher = (
            Frozen(teacher.description, rules.place(in_dtype(teacher.params, experiment.dtype), self._mesh))
            if teacher
            else None
        )
        asked = self._teacher.model if self._teacher else None
        task = task_of(parts, asked, self._mesh)
        self._train_step = step.make_train_step(experiment, task, tx, placed, self._mesh)
        self._eval_step = eval_step_of(parts, self._mesh)
        self._start = int(self._state.step)
        self._rates.flops = flops_per_image(card.description, asked, experiment.lock_image)
        skips = Skips(len(parts.dataset.train), experiment.seed, experiment.batch)
        self._metrics = MetricsWriter(self._workdir, self._start, skips)
        if jax.process_index() == 0:
            (self._workdir / "config.txt").write_text(card.meta["config_text"])
            _announce(experiment, card, self._start, said, self._mesh.shape)

    def _stored_answers(self) -> CachedLogits | None:
        """The teacher's answers where they are stored; filled first, before anything large is on the device."""
        teacher, parts = self._parts.teacher, self._parts
        if teacher is None or not self._experiment.teacher_cache:
            return None
        spec = parts.card.preprocess
        alive = partial(self._watchdog.at, "asking the teacher", 0)
        with self._explained_evaluation():
            return stored_answers(self._experiment, teacher, parts.dataset, spec, self._mesh, alive)

    def _first_state(self, fresh: TrainState) -> TrainState:
        if self._saved is None:
            return (
                fresh if self._parts.pretrained is None else self._begun_with(self._parts.pretrained, fresh)
            )
        self._watchdog.at("restoring", self._saved)
        number = jax.device_put(self._saved, fresh.step.sharding).astype(fresh.step.dtype)
        return dataclasses.replace(fresh, step=number, **self._checkpoints.restore(fresh))

    def _begun_with(self, params: Params, fresh: TrainState) -> TrainState:
        ema = None if fresh.ema is None else rules.place(params, self._mesh)
        return dataclasses.replace(fresh, params=rules.place(params, self._mesh), ema=ema)

    def to_the_end(self) -> dict[str, object]:
        """Runs the loop and reports."""
        total = self._experiment.total_steps
        try:
            with ending_without_peers():
                self._loop()
                if total not in self._scores:  # the workdir held the whole run
                    self._evaluate(total)
            self._watchdog.at("saving", total)
        finally:
            self._checkpoints.close()
            self._metrics.close()
        model, score, trained = self._parts.card.description, self._scores[total], total > self._start
        return {
            "stage": self._parts.card.meta["stage"],
            "workdir": str(self._workdir),
            "steps": total,
            "resumed_from": self._start,
            "validation_top1": score["top1"],
            "validation_loss": score["loss"],
            "params": description.param_count(model),
            "macs": description.macs(model),
            "train_images_per_s": round(self._rates.images_per_s, 1) if trained else None,
            "goodput": round(self._rates.goodput, 4) if trained else None,
            "spent_s": {what: round(seconds, 2) for what, seconds in self._rates.spent_s.items()},
        }

    def _loop(self) -> None:
        watchdog, preemption = self._watchdog, self._preemption
        experiment, label = self._experiment, str(self._parts.card.meta["stage"])
        if self._owes_evaluation and self._start < experiment.total_steps:
            self._evaluate(self._start)
        with (
            progress(experiment.total_steps, label, self._start) as bar,
            Profiler(experiment, self._workdir) as profiler,
        ):
            for number, batch in enumerate(self._batches(), self._start + 1):
                if number == self._start + 1:
                    watchdog.at("compiling", number)
                    with preemption.compiling(), self._rates.spending("compile"):
                        metrics = self._first_step(batch)
                else:
                    watchdog.at("stepping", number)
                    with profiler.at(number):
                        metrics = self._step(batch)
                last = number == experiment.total_steps
                self._log(number, metrics, number % experiment.log_every == 0 or last)
                # Before saving: who goes on from a checkpoint has the whole record up to it.
                if number % experiment.eval_every == 0 or last:
                    self._evaluate(number)
                if number % experiment.checkpoint_every == 0 or last:
                    watchdog.at("saving", number)
                    self._save(number)
                bar.advance(note=self._note())
                if not last and preemption.due():
                    self._leave(number)
                watchdog.at("waiting for input", number + 1)
        self._metrics.flush()
        if self._start + 1 < experiment.total_steps:
            self._rates.step()

    def _log(self, number: int, metrics: Mapping[str, jax.Array], written: bool) -> None:
        """Takes note of a step; what it gave is fetched when the next one is under way."""
        self._metrics.queue(number, metrics, written)
        # What came before is done with now; the first step has waited for itself, and this one is under way.
        if number > self._start + 2:
            self._rates.step()
        if written:
            self._metrics.write(number, self._rates.lap())

    def _first_step(self, batch: Batch) -> Mapping[str, jax.Array]:
        """Compiles and steps, to the end: here it shows whether memory is enough."""
        refusal = partial(memory.refusal, experiment=self._experiment, mesh=self._mesh)
        with memory.explained(refusal):
            return jax.block_until_ready(self._step(batch))

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
            with self._rates.spending("input"):
                batch = next(batches)
            if self._answers is not None:
                batch |= self._answers.read(batch["index"], batch["epoch"])
            yield to_global(batch, self._mesh)

    def _save(self, number: int) -> None:
        self._metrics.flush()
        top1 = self._scores[number]["top1"] if self._experiment.keep_best and number in self._scores else None
        with self._rates.spending("save"):
            self._checkpoints.save(self._state, self._card_at(number), top1)
        self._saved = number

    def _card_at(self, number: int) -> Card:
        due = number % self._experiment.eval_every == 0
        position = {
            "step": number,
            "next_example": number * self._experiment.batch,
            "evaluated": not due or number in self._scores,
        }
        card = self._parts.card
        return dataclasses.replace(card, meta={**card.meta, **position})

    def _evaluate(self, number: int) -> None:
        def after_a_batch() -> None:
            self._watchdog.at("evaluating", number)
            if self._preemption.due():
                self._leave(number)

        experiment, spec = self._experiment, self._parts.card.preprocess
        source, params = self._parts.dataset.validation, self._state.evaluated
        self._watchdog.at("evaluating", number)
        with self._rates.spending("evaluate"), self._explained_evaluation():
            score = evaluate(
                self._eval_step, params, source, spec, experiment.batch_eval, self._mesh, after_a_batch
            )
        self._scores[number] = score
        self._metrics.flush()
        self._metrics.write(number, {f"validation_{name}": value for name, value in score.items()})

    def _explained_evaluation(self) -> contextlib.AbstractContextManager[None]:
        return memory.explained(partial(memory.refusal_of_evaluation, experiment=self._experiment))

    def _note(self) -> str:
        latest = self._metrics.latest
        return f"loss {latest['loss']:.3f} top1 {latest['top1']:.2f}" if latest else ""

    def _leave(self, number: int) -> None:
        exit_code = self._preemption.exit_code
        self._watchdog.at("saving", number)
        if self._saved != number:
            self._save(number)
        self._metrics.flush()
        raise UserError(
            f"{_LEAVING[exit_code]}: saved step {number} in {self._workdir}; run the same command to go on",
            exit_code,
        )


def _announce(
    experiment: Experiment, card: Card, start: int, said: list[str], mesh: Mapping[str, int]
) -> None:
    model = card.description
    size = f"{description.param_count(model):,} parameters, {description.macs(model) / 1e6:.2f} MMACs"
    begins = (
        f"with the weights of {experiment.pretrained}" if experiment.pretrained else "with random weights"
    )
    origin = f"resumed from step {start}" if start else f"from step 0, {begins}"
    if start >= experiment.total_steps:
        origin = f"already complete at step {start}, nothing to train; for another run give another --workdir"
    axes = " ".join(f"{axis}={devices}" for axis, devices in mesh.items())
    lines = [f"{card.meta['stage']}: {size}; mesh {axes}; batch {experiment.batch}; {_where()}; {origin}"]
    lines.append(f"configuration {card.meta['config_hash'][:12]}, whole in config.txt of the workdir")
    print("\n".join(lines + said), file=sys.stderr)


def _where() -> str:
    processes, devices = jax.process_count(), jax.device_count()
    kind = f"{jax.devices()[0].platform} device{'s' if devices > 1 else ''}"
    return f"{processes} process{'es' if processes > 1 else ''} with {devices} {kind}"
