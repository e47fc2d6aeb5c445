"""What a described model costs: parameters and multiply-accumulates."""

from trainer.description.mixer import Mixer
from trainer.description.serialise import Model
from trainer.description.stem import Convolution, Stem, unit_convolutions
from trainer.description.text import TextTower
from trainer.description.towers import TwoTowers
from trainer.description.vit import Block, ViT


def param_count(model: Model) -> int:
    """The number of parameters, equal to the number of elements in the model's arrays."""
    if isinstance(model, TwoTowers):
        return int(model.bias) + param_count(model.image) + param_count(model.text) + 1  # the temperature
    if isinstance(model, TextTower):
        return _text_params(model)
    return _mixer_params(model) if isinstance(model, Mixer) else _vit_params(model)


def macs(model: Model) -> int:
    """Multiply-accumulates of one forward pass of one image (or text, or one of each): convolutions and matrix products."""
    if isinstance(model, TwoTowers):
        return macs(model.image) + macs(model.text)
    if isinstance(model, TextTower):
        blocks = sum(block_macs(block, model.width, model.max_tokens) for block in model.blocks)
        return blocks + model.width * model.embed_dim
    return _mixer_macs(model) if isinstance(model, Mixer) else _vit_macs(model)


def _vit_params(model: ViT) -> int:
    d = model.width
    stem = _stem_params(model.stem, model.channels) if model.stem else 0
    patch = _dense(model.patch_size**2 * model.stem_channels, d)
    tokens = model.num_prefix * d + model.num_tokens * d
    heads = (1 + model.distilled) * _head(d, model.num_classes)
    return stem + patch + tokens + sum(block_params(block, d) for block in model.blocks) + 2 * d + heads


def _dense(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def _head(width: int, outputs: int) -> int:
    return _dense(width, outputs) if outputs else 0


def block_params(block: Block, width: int) -> int:
    """The parameters of one block in a residual stream of `width` channels, its LayerNorms included."""
    n, k, v, f = (
        block.num_heads,
        block.qk_dim,
        block.v_dim,
        block.mlp_dim,
    )  # astuple copies deeply: searches call this often
    attention = 2 * n * k * (width + 1) + n * v * (width + 1) + n * v * width + width + 2 * width if n else 0
    mlp = width * f + f + f * width + width + 2 * width if f else 0
    return attention + mlp


def _mixer_params(model: Mixer) -> int:
    d, p = model.width, model.num_patches
    tokens = _dense(p, model.tokens_mlp_dim) + _dense(model.tokens_mlp_dim, p)
    channels = _dense(d, model.channels_mlp_dim) + _dense(model.channels_mlp_dim, d)
    patch = _dense(model.patch_size**2 * model.channels, d)
    return patch + model.num_blocks * (tokens + channels + 4 * d) + 2 * d + _head(d, model.num_classes)


def _text_params(model: TextTower) -> int:
    d = model.width
    # BERT normalises its embeddings, which are of three kinds; the small transformer normalises at its end.
    tables = model.vocab_size + model.num_positions + (2 if model.style == "bert" else 0)
    blocks = sum(block_params(block, d) for block in model.blocks)
    return tables * d + 2 * d + blocks + _head(d, model.embed_dim)


def _vit_macs(model: ViT) -> int:
    stem = _stem_macs(model.stem, model.channels, model.image_size) if model.stem else 0
    patch = model.num_patches * model.patch_size**2 * model.stem_channels * model.width
    blocks = sum(
        block_macs(block, model.width, tokens, model.num_prefix)
        for block, tokens in zip(model.blocks, model.tokens_by_block)
    )
    return stem + patch + blocks + (1 + model.distilled) * model.width * model.num_classes


def block_macs(block: Block, width: int, num_tokens: int, num_prefix: int = 0) -> int:
    """Multiply-accumulates of one block on `num_tokens` tokens, of which `num_prefix` in front are never merged."""
    n, k, v, f = (
        block.num_heads,
        block.qk_dim,
        block.v_dim,
        block.mlp_dim,
    )  # astuple copies deeply: searches call this often
    projections = num_tokens * width * n * (2 * k + 2 * v)
    attention = num_tokens**2 * n * (k + v)
    merging = _merge_macs(block, width, num_tokens, num_prefix) if block.merge else 0
    return projections + attention + merging + 2 * (num_tokens - block.merge) * width * f


def _merge_macs(block: Block, width: int, num_tokens: int, num_prefix: int) -> int:
    """The cosines of every other patch with those between them, and the product that adds the merged tokens, with their sizes."""
    patches = num_tokens - num_prefix
    cosines = -(-patches // 2) * (patches // 2) * block.qk_dim
    return cosines + block.merge * num_tokens * (width + 1)


def _mixer_macs(model: Mixer) -> int:
    d, p = model.width, model.num_patches
    block = 2 * p * d * (model.tokens_mlp_dim + model.channels_mlp_dim)
    return p * model.patch_size**2 * model.channels * d + model.num_blocks * block + d * model.num_classes


def _stem_params(stem: Stem, channels: int) -> int:
    units = (
        convolution.params
        for stage, count in enumerate(stem.stages)
        for unit in range(count)
        for convolution in unit_convolutions(stem, stage, unit).values()
    )
    return Convolution(7, channels, stem.width, 2).params + sum(units)


def _stem_macs(stem: Stem, channels: int, image_size: tuple[int, int]) -> int:
    rows, columns = (-(-side // 2) for side in image_size)
    total = rows * columns * 49 * channels * stem.width
    rows, columns = -(-rows // 2), -(-columns // 2)  # the max-pool
    for stage, count in enumerate(stem.stages):
        for unit in range(count):
            cells = rows * columns
            if stage and unit == 0:
                rows, columns = -(-rows // 2), -(-columns // 2)
            for name, one in unit_convolutions(stem, stage, unit).items():
                seen = cells if name == "conv1" else rows * columns
                total += seen * one.kernel**2 * one.inputs * one.outputs
    return total
