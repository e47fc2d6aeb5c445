"""The command `vitforge VERB …`: every command of the house under one name.

Each verb is a module that `python -m` runs as well; this file only finds it, and says which extra a smaller installation lacks.
"""

import runpy
import sys
from dataclasses import dataclass
from importlib.util import find_spec


@dataclass(frozen=True)
class _Verb:
    module: str
    does: str
    needs: tuple[str, ...] = ()
    extra: str = ""


_TRAINING = ("jax", "flax", "optax", "grain", "orbax", "ml_collections")
_SERVING = ("onnxruntime", "PIL", "grpc_health")

VERBS = {
    "train": _Verb("trainer.main", "train, fine-tune or distil, as the recipe says", _TRAINING, "train"),
    "compress": _Verb(
        "trainer.compress", "cut a trained model to a budget and repair it", _TRAINING, "train"
    ),
    "evaluate": _Verb("trainer.evaluate", "accuracy of a checkpoint", _TRAINING, "train"),
    "export": _Verb(
        "trainer.export", "write a bundle that a server can check and serve", (*_TRAINING, "onnx"), "train"
    ),
    "serve": _Verb("serving.main", "serve bundles over gRPC", _SERVING, "serve"),
    "classify": _Verb("serving.client", "ask a server what images show"),
    "bench": _Verb("tools.bench_serving", "throughput and latency of a running server"),
    "models": _Verb("tools.models", "every model by name: parameters, sizes, multiply-accumulates"),
    "launch": _Verb("tools.launch", "run a command as the processes of a distributed job"),
    "quickstart": _Verb(
        "tools.quickstart", "the whole job on real handwritten digits", _TRAINING + _SERVING, "train,serve"
    ),
}


def main() -> None:
    """Runs the verb in `sys.argv` as the main module of this process."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("--help", "-h", "help"):
        print(_help())
        return
    if name not in VERBS:
        sys.exit(_refuse(f"no such verb: {name!r}; there are {', '.join(VERBS)} (see vitforge --help)"))
    verb = VERBS[name]
    missing = [module for module in verb.needs if find_spec(module) is None]
    if missing:
        install = f"pip install 'vitforge[{verb.extra}]'"
        sys.exit(_refuse(f"vitforge {name} needs {', '.join(missing)}, not installed here: {install}"))
    sys.argv = [f"vitforge {name}", *arguments]
    runpy.run_module(verb.module, run_name="__main__", alter_sys=True)


def _refuse(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


def _help() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {name:{width}}  {verb.does} (python -m {verb.module})" for name, verb in VERBS.items()]
    usage = [
        "vitforge VERB …: from a trained Vision Transformer to a small one that is served.",
        "",
        "Verbs:",
        *lines,
    ]
    hints = [
        "vitforge VERB --help lists the flags of a verb.",
        "A first look, in minutes: vitforge quickstart",
    ]
    return "\n".join([*usage, "", *hints])


if __name__ == "__main__":
    main()
