"""The peer, Torch-Pruning, on our teacher: cut to the same MACs by L2, Taylor and "Hessian" scores, without repair or training.

It runs in an environment of its own (`make peer` makes it in .venv-torch), from the root of the repository, and is started by
`python -m tools.bench_compression one_shot`:

    .venv-torch/bin/python -m tools.bench_compression.torch_peer --inputs=DIR --output=DIR --fractions=0.5,0.25,0.1

`--inputs` is what `tools.bench_compression.peer_inputs` wrote. The teacher becomes timm's VisionTransformer; its logits must equal
ours. Cut are MLP neurons and head dims, by one ratio in all blocks and locally ranked, as Torch-Pruning's own ViT example
("bottleneck") does; the heads, the residual stream, the patch embedding and the classifier stay whole, and so does the attention
scale of the teacher. The ratio is the smallest whose MACs are at most 1 % above the budget, or the cheapest where none is; sizes
are rounded to 4. Taylor's gradients are of the labelled loss over all calibration images (our side has no labels), Hessian's of
single images, over the first 256 of them, accumulated as the library does it.

Writes OUTPUT/FRACTION-METHOD.npz, arrays under timm's names, and prints a JSON object: per cut its ratio, MACs and test accuracy.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tools.bench_compression.methods import METHODS

_ROUND_TO = 4
_SLACK = 1.01  # of the budget: a half of everything is 50.1 % of the MACs, and the step below it would wrong the peer
_TOLERANCE = 1e-3  # of a logit: two float32 implementations of six blocks differ by some 1e-5
_RATIO_STEPS = 64  # ratios that are tried are multiples of one in so many
_MARGIN = 0.0625  # below the ratio that would do if all MACs fell with it; rounding leaves less than asked by far less
_HESSIAN_IMAGES = 256  # each needs a backward pass of its own
_BATCH = 250


def main(argv: Sequence[str] | None = None) -> None:
    """Cuts, evaluates and writes; see the module."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench_compression.torch_peer", description=__doc__)
    parser.add_argument("--inputs", type=Path, required=True, help="folder that peer_inputs wrote")
    parser.add_argument("--output", type=Path, required=True, help="folder of the cut weights")
    parser.add_argument("--fractions", required=True, help="MACs to keep, each in (0, 1], joined by commas")
    arguments = parser.parse_args(argv)
    fractions = [float(part) for part in arguments.fractions.split(",")]
    print(json.dumps(peer(arguments.inputs, arguments.output, fractions)))


def macs(shape: Mapping[str, Any], blocks: Sequence[tuple[int, int, int]]) -> int:
    """Multiply-accumulates of one image, by the formula of `trainer.description`; `blocks` of (heads, head dim, neurons)."""
    d, p = shape["width"], shape["patch_size"]
    tokens = (shape["image_size"][0] // p) * (shape["image_size"][1] // p)
    outside = tokens * p * p * shape["channels"] * d + d * shape["num_classes"]
    attention = sum(tokens * d * n * 4 * e + 2 * tokens**2 * n * e for n, e, _ in blocks)
    return outside + attention + sum(2 * tokens * d * f for _, _, f in blocks)


def least_ratio(
    cost: Callable[[float], int], budget: int, start: float = 0.0, steps: int = _RATIO_STEPS
) -> float:
    """The smallest k / `steps` from `start` up and below 1 whose `cost` is within `budget`; else the cheapest of them.

    Tried one after the other: near 1 the library, rather than leave a layer nothing, cuts nothing from it. Then the peer keeps
    more than was asked, as its row says.
    """
    costs = {}
    for k in range(int(start * steps), steps):
        costs[k / steps] = cost(k / steps)
        if costs[k / steps] <= budget:
            return k / steps
    return min(costs, key=lambda ratio: costs[ratio])


def peer(inputs: Path, output: Path, fractions: Sequence[float]) -> dict[str, Any]:
    """All cuts; the result has `versions`, the teacher's `max_logit_difference` and `cuts`, one dict each."""
    import importlib.metadata

    import torch

    torch.manual_seed(0)
    shape = json.loads((inputs / "shape.json").read_text())
    arrays = {path.stem: np.load(path) for path in inputs.glob("*.npy")}
    teacher = _teacher(shape, inputs / "teacher.safetensors")
    apart = _difference(teacher, arrays)
    if apart > _TOLERANCE:
        sys.exit(f"error: timm's logits of the teacher differ from ours by {apart:.2g}, above {_TOLERANCE}")
    full = macs(shape, _sizes(teacher))
    print("gradients of the teacher", file=sys.stderr, flush=True)
    gradients = _gradients(teacher, arrays)
    output.mkdir(parents=True, exist_ok=True)
    cuts = []
    for fraction in fractions:
        budget = int(_SLACK * fraction * full)
        near = max(0.0, 1 - fraction - _MARGIN)
        ratio = least_ratio(lambda r: macs(shape, _sizes(_cut(teacher, shape, r))), budget, near)
        for method in METHODS:
            cut = _cut(teacher, shape, ratio, method, gradients.get(method, {}))
            path = output / f"{fraction:g}-{method}.npz"
            np.savez(path, **{name: leaf.numpy() for name, leaf in cut.state_dict().items()})
            said = {"method": method, "fraction": fraction, "ratio": ratio, "file": path.name}
            said |= {"macs": macs(shape, _sizes(cut)), "blocks": _sizes(cut)}
            cuts.append({**said, "correct": _correct(cut, arrays), "examples": len(arrays["test_labels"])})
            print(f"{fraction:g} {method}: {cuts[-1]['correct']} right", file=sys.stderr, flush=True)
    packages = ("torch", "timm", "torch-pruning", "numpy")
    versions = {package: importlib.metadata.version(package) for package in packages}
    return {"versions": versions, "max_logit_difference": apart, "teacher_macs": full, "cuts": cuts}


def _teacher(shape: Mapping[str, Any], path: Path) -> Any:
    """timm's model of our description, holding the file's arrays, every one of them."""
    from functools import partial

    _import_torchvision()
    from safetensors.torch import load_file
    from timm.models.vision_transformer import VisionTransformer
    from torch import nn

    model = VisionTransformer(
        img_size=tuple(shape["image_size"]),
        patch_size=shape["patch_size"],
        in_chans=shape["channels"],
        num_classes=shape["num_classes"],
        embed_dim=shape["width"],
        depth=shape["depth"],
        num_heads=shape["num_heads"],
        mlp_ratio=shape["mlp_dim"] / shape["width"],
        class_token=shape["pooling"] == "cls",
        global_pool="token" if shape["pooling"] == "cls" else "avg",
        fc_norm=False,
        norm_layer=partial(nn.LayerNorm, eps=shape["norm_eps"]),
        act_layer=partial(nn.GELU, approximate="none" if shape["gelu"] == "erf" else "tanh"),
    )
    model.load_state_dict(load_file(path))
    for block in model.blocks:
        block.attn.fused_attn = False  # the fused one takes the scale from the head dims that are left
    return model.eval()


def _import_torchvision() -> None:
    """timm imports torchvision, of whose operators it needs none here.

    Its build for CUDA does not load beside a CPU build of torch and then fails for want of two operators: they are declared.
    """
    import torch

    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in ("nms", "qnms"):
            arguments = "(Tensor boxes, Tensor scores, float threshold) -> Tensor"
            torch.library.define(f"torchvision::{name}", arguments)


def _sizes(model: Any) -> list[tuple[int, int, int]]:
    """(heads, head dim, neurons) of every block."""
    return [(b.attn.num_heads, b.attn.head_dim, b.mlp.fc1.out_features) for b in model.blocks]


def _batches(*arrays: np.ndarray, rows: int = _BATCH) -> Iterator[tuple[Any, ...]]:
    """Tensors of `rows` rows; images (B, H, W, C) come as (B, C, H, W)."""
    import torch

    for start in range(0, len(arrays[0]), rows):
        parts = [torch.from_numpy(array[start : start + rows]) for array in arrays]
        yield tuple(part.permute(0, 3, 1, 2) if part.ndim == 4 else part for part in parts)


def _logits(model: Any, images: np.ndarray) -> np.ndarray:
    import torch

    with torch.inference_mode():
        return np.concatenate([model(batch).numpy() for (batch,) in _batches(images)])


def _difference(model: Any, arrays: Mapping[str, np.ndarray]) -> float:
    ours = arrays["logits"]
    return float(np.abs(_logits(model, arrays["test_images"][: len(ours)]) - ours).max())


def _correct(model: Any, arrays: Mapping[str, np.ndarray]) -> int:
    return int((_logits(model, arrays["test_images"]).argmax(-1) == arrays["test_labels"]).sum())


Gradients = dict[str, Any]  # by the parameter's name


def _gradients(model: Any, arrays: Mapping[str, np.ndarray]) -> dict[str, Gradients]:
    """What Taylor and Hessian score with, computed once: the mean gradient, and what the library's own scorer accumulates."""
    import torch_pruning as tp
    from torch.nn import functional

    images, labels = arrays["calibration_images"], arrays["calibration_labels"]
    model.zero_grad()
    for batch, right in _batches(images, labels):
        functional.cross_entropy(model(batch), right.long(), reduction="sum").backward()
    taylor = {name: leaf.grad / len(images) for name, leaf in model.named_parameters()}
    scorer = tp.importance.GroupHessianImportance()
    for image, right in _batches(images[:_HESSIAN_IMAGES], labels[:_HESSIAN_IMAGES], rows=1):
        model.zero_grad()
        functional.cross_entropy(model(image), right.long()).backward()
        scorer.accumulate_grad(model)
    held, counts = scorer._accu_grad, scorer._counter
    hessian = {name: held[leaf] / counts[leaf] for name, leaf in model.named_parameters()}
    model.zero_grad()
    return {"taylor": taylor, "hessian": hessian}


def _cut(
    teacher: Any, shape: Mapping[str, Any], ratio: float, method: str = "l2", gradients: Any = None
) -> Any:
    """A copy of `teacher` without `ratio` of each block's neurons and head dims; what stays does not depend on the scores."""
    import copy

    import torch
    import torch_pruning as tp

    model = copy.deepcopy(teacher)
    for name, leaf in model.named_parameters():
        if gradients:
            leaf.grad = gradients[name].clone()  # a copy of a model has no gradients
    scores = {
        "l2": tp.importance.GroupMagnitudeImportance(p=2),
        "taylor": tp.importance.GroupTaylorImportance(),
        "hessian": tp.importance.GroupHessianImportance(),
    }
    whole = [model.patch_embed, model.head]
    for block in model.blocks:
        whole += [block.attn.proj, block.mlp.fc2]
    pruner = tp.pruner.BasePruner(
        model,
        torch.zeros(1, shape["channels"], *shape["image_size"]),
        importance=scores[method],
        pruning_ratio=ratio,
        ignored_layers=whole,
        round_to=_ROUND_TO,
        num_heads={block.attn.qkv: block.attn.num_heads for block in model.blocks},
        prune_num_heads=False,
        prune_head_dims=True,
    )
    pruner.step()
    for block in model.blocks:
        attention = block.attn
        attention.attn_dim = attention.qkv.out_features // 3
        attention.head_dim = attention.attn_dim // attention.num_heads
    model.zero_grad()
    return model.eval()


if __name__ == "__main__":
    main()
