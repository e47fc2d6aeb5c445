"""Which packages each extra of the installation brings, by the names under which they are imported, and what to say without them.

The one table of it: every command answers from here (`serving.command.run_command`). The base needs none of these.
"""

from importlib.util import find_spec

EXTRAS = {
    "serve": ("grpc_health", "onnxruntime", "PIL"),
    "train": (
        "array_record",
        "jax",
        "flax",
        "optax",
        "grain",
        "orbax",
        "tensorstore",
        "ml_collections",
        "onnx",
        "onnxruntime",
        "PIL",
        "sklearn",
        "scipy",
        "simplejpeg",
        "matplotlib",
        "fsspec",
        "safetensors",
        "tensorboardX",
        "sentencepiece",
        "tokenizers",
    ),
}


def what_to_install(module: str | None, extra: str) -> str | None:
    """One line for a failed import of `module`, or None when no extra would bring it.

    `extra` is what the command needs, as pip takes it ("train,serve"); "" leaves it to the module.
    """
    package = (module or "").partition(".")[0]
    bringing = [name for name, packages in EXTRAS.items() if package in packages]
    if not bringing:
        return None
    wanted = [name for name in extra.split(",") if name] or bringing[:1]
    packages = dict.fromkeys([package, *(one for name in wanted for one in EXTRAS[name])])
    missing = [one for one in packages if one == package or not _is_there(one)]
    return f"this command needs {', '.join(missing)}, not installed here: pip install 'vitforge[{','.join(wanted)}]'"


def require(extra: str) -> None:
    """Looks for every package of `extra` before long work, and not in its midst.

    Raises:
      ModuleNotFoundError: for the first one that is not there, as an import of it does.
    """
    for name in extra.split(","):
        for package in EXTRAS[name]:
            if not _is_there(package):
                raise ModuleNotFoundError(f"No module named {package!r}", name=package)


def _is_there(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ImportError:
        return False
