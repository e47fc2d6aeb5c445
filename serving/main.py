"""Serves every bundle of a repository over gRPC.

    python -m serving.main --model_repository=REPO --port=8001

One line for each model and one for the address go to stderr. Once calls are taken, stdout gets a JSON line
{"event": "ready", "port": …, "models": [NAME/VERSION…], "refused": {NAME/VERSION: reason…}}, which scripts may wait for. SIGTERM or
SIGINT drains and ends it with exit code 0.
"""

import asyncio
import functools
import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from serving import command

if TYPE_CHECKING:
    from serving.service.server import ServerOptions


def main(argv: list[str]) -> dict[str, object]:
    """Runs the command; see the module."""
    values = _flags()
    rest = command.parse_flags(values, argv, required=["model_repository"])
    if rest:
        raise command.UserError(f"unexpected argument {rest[0]}: flags are written --name=value (see --help)")
    if not values["model_repository"].value:
        raise command.UserError(
            "--model_repository is missing: name the folder that holds NAME/VERSION bundles"
        )
    return asyncio.run(serve(_options(values), values["drain_s"].value))


async def serve(options: "ServerOptions", drain_s: float) -> dict[str, object]:
    """Serves until SIGTERM or SIGINT, drains, and returns what there is to say at the end."""
    from serving.service.server import Server

    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    server = await Server.start(options)
    names = [f"{model.name}/{model.version}" for model in server.models]
    for loaded in server.loaded:
        print(f"loaded {loaded.name} version {loaded.version} ({loaded.precision})", file=sys.stderr)
    print(f"serving on {options.host}:{server.port}", file=sys.stderr, flush=True)
    refused = {f"{entry.name}/{entry.version}": entry.reason for entry in server.refused}
    ready = {"event": "ready", "port": server.port, "models": names, "refused": refused}
    print(json.dumps(ready), flush=True)
    await stop.wait()
    print("draining", file=sys.stderr, flush=True)
    await server.stop(drain_s)
    return {"event": "stopped", "answered": sum(model.telemetry.success.count for model in server.models)}


def _flags() -> flags.FlagValues:
    # Imported inside functions, here and below: a smaller installation says what it lacks, in one line.
    from serving.service.server import ServerOptions

    values = flags.FlagValues()
    text, whole, real = (
        functools.partial(define, flag_values=values)
        for define in (flags.DEFINE_string, flags.DEFINE_integer, flags.DEFINE_float)
    )
    usual = ServerOptions(Path())
    text("model_repository", None, "Folder of NAME/VERSION bundles, as trainer.export writes them.")
    text("host", usual.host, "Address to listen on; 127.0.0.1 takes calls of this machine only.")
    whole("port", usual.port, "Port to listen on; 0 takes a free one.", 0, 65535)
    whole("threads", usual.threads, "Threads of a model's runtime; 0: one per core.", 0, 1024)
    whole(
        "executors",
        usual.executors,
        "Batches of a model computed at the same time, each beyond the first on one thread more; 0: two, or one with --threads=1.",
        0,
        64,
    )
    whole("max_batch_size", usual.max_batch_size, "Rows computed together at most.", 1, 65_536)
    real("max_delay_ms", usual.max_delay_s * 1e3, "How long queued requests may wait for company.", 0.0)
    whole(
        "max_queue_rows",
        usual.max_queue_rows,
        "Rows of a model that may wait; more are refused. At least a batch.",
        1,
    )
    text(
        "precision",
        usual.precision,
        "Model file to serve of each bundle, fp32, int8 or int8_weights; empty: its first.",
    )
    real("drain_s", 30.0, "Seconds that calls under way get to finish after SIGTERM.", 0.0)
    whole(
        "max_message_bytes",
        usual.max_message_bytes,
        "Largest message in bytes, taken or sent; 0: a full batch fits, at least 64 MiB. Beyond it: RESOURCE_EXHAUSTED.",
        0,
        2**31 - 1,
    )
    return values


def _options(values: flags.FlagValues) -> "ServerOptions":
    from serving.service.server import ServerOptions

    return ServerOptions(
        model_repository=Path(values["model_repository"].value),
        host=values["host"].value,
        port=values["port"].value,
        threads=values["threads"].value,
        executors=values["executors"].value,
        max_batch_size=values["max_batch_size"].value,
        max_delay_s=values["max_delay_ms"].value / 1e3,
        max_queue_rows=values["max_queue_rows"].value,
        precision=values["precision"].value,
        max_message_bytes=values["max_message_bytes"].value,
    )


if __name__ == "__main__":
    command.run_command(main, extra="serve")
