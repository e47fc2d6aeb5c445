"""Who writes the files of a data set: this process, several of this machine, or the workers of an Apache Beam runner."""

import importlib
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

from serving.command import UserError, progress
from trainer.data.write_shards import Shard, write_shard


def in_processes(shards: Sequence[Shard], workers: int) -> None:
    """One file after the other here (0 workers), or as many at a time as there are worker processes."""
    with progress(len(shards), "files") as bar:
        if not workers:
            for shard in shards:
                write_shard(shard)
                bar.advance()
            return
        # A forked child could hang on the locks of libraries with threads.
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
            for _ in pool.map(write_shard, shards):
                bar.advance()


def by_beam(shards: Sequence[Shard], options: Sequence[str]) -> None:
    """Every file by some worker of the runner that `options` name; all see data set and output under the same paths.

    Raises:
      UserError: when Apache Beam is not installed.
    """
    try:
        beam = importlib.import_module("apache_beam")
        pipeline_options = importlib.import_module("apache_beam.options.pipeline_options")
    except ImportError as error:
        raise UserError("--beam needs Apache Beam: pip install apache-beam") from error
    with beam.Pipeline(options=pipeline_options.PipelineOptions(list(options))) as pipeline:
        # Reshuffle lets a runner give each file to another worker.
        _ = pipeline | beam.Create(list(shards)) | beam.Reshuffle() | beam.Map(write_shard)
