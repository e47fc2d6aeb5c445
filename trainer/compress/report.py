"""What a compression did, for people: sizes asked and actual, accuracy with and without repair, the plan layer by layer."""

from typing import Any

import numpy as np

from serving import preprocess
from serving.preprocess import PreprocessSpec
from trainer.compress import streams
from trainer.compress.plan import Plan
from trainer.compress.search import Candidate
from trainer.data.source import ImageSource
from trainer.description import ViT
from trainer.models.build import Params


def top1(model: ViT, params: Params, spec: PreprocessSpec, source: ImageSource, batch: int) -> float:
    """The fraction of `source` whose largest logit is its label."""
    images = preprocess.normalise(np.stack([preprocess.fit(image, spec) for image in source.images]), spec)
    # A shorter last batch would be compiled anew for every branch; zeros fill it, and their answers are left out.
    filled = np.concatenate([images, np.zeros((-len(images) % batch, *images.shape[1:]), images.dtype)])
    logits = streams.logits(model, params, filled, batch)[: len(images)]
    return float(np.mean(logits.argmax(axis=-1) == source.labels))


def markdown(result: dict[str, Any], plan: Plan, teacher: ViT, candidates: list[Candidate]) -> str:
    """The report as a Markdown page."""
    sizes = [
        f"| {name} | {result[name]['teacher']:,} | {result[name]['asked'] or '-'} | {result[name]['actual']:,} "
        f"| {result[name]['actual'] / result[name]['teacher']:.1%} |"
        for name in ("params", "macs")
    ]
    accuracy = [f"| {name} | {value:.2%} |" for name, value in result["validation_top1"].items()]
    layers = [_row(layer.source, teacher, layer.block) for layer in plan.layers]
    gone = sorted(set(range(len(teacher.blocks))) - {layer.source for layer in plan.layers})
    tried = [f"| {one.made_by} | {one.cost:,} | {one.divergence:.4f} |" for one in candidates]
    parts = [
        "# Compression\n",
        "| size | teacher | asked | actual | of the teacher |\n| --- | --- | --- | --- | --- |\n"
        + "\n".join(sizes)
        + "\n",
        "| validation, no training step | top-1 |\n| --- | --- |\n" + "\n".join(accuracy) + "\n",
        "| teacher's layer | heads | query/key dims | value dims | MLP neurons |\n| --- | --- | --- | --- | --- |\n"
        + "\n".join(layers)
        + "\n",
        f"Layers removed: {', '.join(map(str, gone)) or 'none'}.\n",
    ]
    if "budget" in result:
        parts.append(_budget(result["budget"]))
    if tried:
        parts.append(
            "| candidate | cost | KL to the teacher, nats |\n| --- | --- | --- |\n" + "\n".join(tried) + "\n"
        )
    parts += [f"Remark: {remark}.\n" for remark in result["remarks"]]
    return "\n".join(parts)


def _budget(met: dict[str, Any]) -> str:
    return (
        "| budget | asked | predicted | measured | spread | searches | on |\n| --- | --- | --- | --- | --- | --- | --- |\n"
        f"| {met['name']} | {met['asked']:g} | {met['predicted']:.4g} | {met['measured']:.4g} | {met['spread']:.1%} "
        f"| {met['searches']} | {met['where']} |\n"
    )


def _row(source: int, teacher: ViT, block: Any) -> str:
    full = teacher.blocks[source]
    pairs = (
        (block.num_heads, full.num_heads),
        (block.qk_dim, full.qk_dim),
        (block.v_dim, full.v_dim),
        (block.mlp_dim, full.mlp_dim),
    )
    return f"| {source} | " + " | ".join(f"{kept} of {all_}" for kept, all_ in pairs) + " |"
