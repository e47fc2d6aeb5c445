"""The command `vitforge VERB …`: every command of the house under one name.

Each verb is a module that `python -m` runs as well, and that says itself what a smaller installation lacks; here it is
only found.
"""

import runpy
import sys
from dataclasses import dataclass

import trainer


@dataclass(frozen=True)
class _Verb:
    module: str
    does: str


VERBS = {
    "train": _Verb("trainer.main", "train, fine-tune or distil, as the recipe says"),
    "compress": _Verb(
        "trainer.compress", "make a trained model smaller to a budget: cut, repair, distil, ship"
    ),
    "evaluate": _Verb("trainer.evaluate", "accuracy of a checkpoint"),
    "probe": _Verb("trainer.probe", "what a model's frozen features know: linear probe, nearest neighbours"),
    "zeroshot": _Verb("trainer.zero_shot", "what an image-text pair knows: classes by name, retrieval"),
    "predict": _Verb("trainer.predict", "what a model says of pictures, arrays and texts"),
    "convert": _Verb("trainer.convert", "weights from one format to another"),
    "export": _Verb("trainer.export", "write a bundle that a server can check and serve"),
    "serve": _Verb("serving.main", "serve bundles over gRPC"),
    "profile": _Verb("serving.timing", "time a kit of models on this device, to cut others to its latency"),
    "classify": _Verb("serving.client", "ask a server what images show"),
    "bench": _Verb("tools.bench_serving", "throughput and latency of a running server"),
    "plan": _Verb("tools.plan", "what a training would need and do on a TPU pod that is not here"),
    "shards": _Verb("tools.convert", "shards of a data set, to be read at random"),
    "models": _Verb("tools.models", "every model by name: parameters, sizes, multiply-accumulates"),
    "launch": _Verb("tools.launch", "run a command as the processes of a distributed job"),
    "quickstart": _Verb("tools.quickstart", "the whole job on real handwritten digits"),
}


def main() -> None:
    """Runs the verb in `sys.argv` as the main module of this process."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("--help", "-h", "help"):
        print(_help())
        return
    if name == "--version":
        print(f"vitforge {trainer.__version__}")
        return
    if name not in VERBS:
        sys.exit(_refuse(f"no such verb: {name!r}; there are {', '.join(VERBS)} (see vitforge --help)"))
    sys.argv = [f"vitforge {name}", *arguments]
    runpy.run_module(VERBS[name].module, run_name="__main__", alter_sys=True)


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
        "vitforge VERB --help lists the flags of a verb; vitforge --version says which version this is.",
        "A first look, in minutes: vitforge quickstart",
    ]
    return "\n".join([*usage, "", *hints])


if __name__ == "__main__":
    main()
