"""The names of the original code (google-research/vision_transformer and big_vision), in every layout."""

from collections.abc import Collection, Mapping

from serving.command import UserError
from trainer.description import Mixer, Model, TextTower, TwoTowers, ViT
from trainer.models.build import flatten, param_shapes
from trainer.weights import families, forms, layouts, names
from trainer.weights.archive import Archive
from trainer.weights.contents import Contents, Facts, describe, is_pair
from trainer.weights.forms import Form, Place, Places, Shape
from trainer.weights.layouts import Encoder, Layout

# norm1, attention, norm2 and mlp of a block.
_NUMBERS = {"released": (0, 1, 2, 3), "linen": (0, 0, 1, 0)}

_VIT: names.Table = {
    "patch": "embedding",
    "cls": "cls",
    "norm": "Transformer/encoder_norm",
    "head": "head",
    "stem/root": "conv_root",
    "stem/root_norm": "gn_root",
    "stem/stages/*/*/conv1": "block{i1}/unit{j1}/conv1",
    "stem/stages/*/*/conv2": "block{i1}/unit{j1}/conv2",
    "stem/stages/*/*/conv3": "block{i1}/unit{j1}/conv3",
    "stem/stages/*/*/proj": "block{i1}/unit{j1}/conv_proj",
    "stem/stages/*/*/conv1_norm": "block{i1}/unit{j1}/gn1",
    "stem/stages/*/*/conv2_norm": "block{i1}/unit{j1}/gn2",
    "stem/stages/*/*/conv3_norm": "block{i1}/unit{j1}/gn3",
    "stem/stages/*/*/proj_norm": "block{i1}/unit{j1}/gn_proj",
}

_MIXER: names.Table = {
    "patch": "stem",
    "blocks/*/norm1": "MixerBlock_{i}/LayerNorm_0",
    "blocks/*/tokens/fc1": "MixerBlock_{i}/token_mixing/Dense_0",
    "blocks/*/tokens/fc2": "MixerBlock_{i}/token_mixing/Dense_1",
    "blocks/*/norm2": "MixerBlock_{i}/LayerNorm_1",
    "blocks/*/channels/fc1": "MixerBlock_{i}/channel_mixing/Dense_0",
    "blocks/*/channels/fc2": "MixerBlock_{i}/channel_mixing/Dense_1",
    "norm": "pre_head_layer_norm",
    "head": "head",
}

_TEXT: names.Table = {
    "token": "Embed_0/embedding",
    "pos": "pos_embedding",
    "norm": "Encoder_0/encoder_norm",
    "head": "head",
}

# Flaxformer's BERT, which keeps its kernels as matrices and its positions without a leading axis.
_LAYER = "BertEncoder_0/encoder_block/layer_sequence/layers_{i}"
_BERT: names.Table = {
    "token": "BertEncoder_0/embedder/embedders_token_ids/embedding",
    "pos": "BertEncoder_0/embedder/embedders_position_ids/embedding",
    "segment": "BertEncoder_0/embedder/embedders_segment_ids/embedding",
    "embed_norm": "BertEncoder_0/layer_norm",
    "blocks/*/attention/query": f"{_LAYER}/attention_block/attention_layer/query",
    "blocks/*/attention/key": f"{_LAYER}/attention_block/attention_layer/key",
    "blocks/*/attention/value": f"{_LAYER}/attention_block/attention_layer/value",
    "blocks/*/attention/out": f"{_LAYER}/attention_block/dense_layer",
    "blocks/*/norm1": f"{_LAYER}/attention_block/layer_norm",
    "blocks/*/mlp/fc1": f"{_LAYER}/mlp_block/mlp/dense_layer",
    "blocks/*/mlp/fc2": f"{_LAYER}/mlp_block/dense_layer",
    "blocks/*/norm2": f"{_LAYER}/mlp_block/layer_norm",
    "head": "head",
}


def _blocks(at: str, encoder: Encoder) -> names.Table:
    norm1, attention, norm2, mlp = _NUMBERS[encoder.numbering]
    block = f"{at}/encoderblock" if encoder.stacked else f"{at}/encoderblock_{{i}}"
    heads = f"{block}/MultiHeadDotProductAttention_{attention}"
    parts = ("query", "key", "value", "out")
    return {
        "blocks/*/norm1": f"{block}/LayerNorm_{norm1}",
        **{f"blocks/*/attention/{part}": f"{heads}/{part}" for part in parts},
        "blocks/*/norm2": f"{block}/LayerNorm_{norm2}",
        "blocks/*/mlp/fc1": f"{block}/MlpBlock_{mlp}/Dense_0",
        "blocks/*/mlp/fc2": f"{block}/MlpBlock_{mlp}/Dense_1",
    }


def places(model: Model, layout: Layout = layouts.RELEASED) -> Places:
    """Where every array of `model` lies in an npz of `layout`; what the format has no name for (DeiT's second token) is absent."""
    if isinstance(model, TwoTowers):
        image = _below("image/", "img/", _tower(model.image, layout, "img/"))
        text = _below("text/", "txt/", _tower(model.text, layout, "txt/"))
        found = {**image, **text, "t": Place("t")}
    else:
        found = _tower(model, layout, "")
    return _below("", layout.prefix, found)


def _below(ours: str, theirs: str, found: Mapping[str, Place]) -> Places:
    moved = {}
    for name, place in found.items():
        moved[ours + name] = Place(theirs + place.name, place.form, place.part, place.parts, place.joined)
    return moved


def _tower(model: ViT | Mixer | TextTower, layout: Layout, at: str) -> Places:
    match model:
        case ViT():
            table = {**_VIT, "pos": layout.positions, **_blocks("Transformer", layout.image)}
            stacked = layout.image.stacked
        case Mixer():
            table, stacked = _MIXER, False
        case TextTower(style="bert"):
            table, stacked = _BERT, False
        case TextTower():
            table, stacked = {**_TEXT, **_blocks("Encoder_0", layout.text)}, layout.text.stacked
    bert = isinstance(model, TextTower) and model.style == "bert"
    found = {}
    for name in flatten(param_shapes(model)):
        translated = names.translate(table, name)
        if translated is None:
            continue
        module, leaf = translated
        theirs = f"{module}/{leaf}" if leaf else module
        if bert:
            form = _bert_form(name)
        elif at + theirs in layout.old_norms:
            form = forms.OLD_GROUP_NORM
        else:
            form = _position_form(model, layout) if name == "pos" else forms.SAME
        if stacked and name.startswith("blocks/"):
            index, layers = int(name.split("/")[1]), len(model.blocks)  # type: ignore[union-attr]
            found[name] = Place(theirs, form, index, layers, "layers")
        else:
            found[name] = Place(theirs, form)
    return found


def _position_form(model: ViT | Mixer | TextTower, layout: Layout) -> Form:
    without = isinstance(model, ViT) and model.num_prefix and not layout.class_row
    return forms.NO_CLASS_ROW if without else forms.SAME


def _bert_form(name: str) -> Form:
    if name == "pos":
        return forms.TABLE
    if name.endswith("kernel"):
        return forms.flat_dense(names.inputs_of(name))
    return forms.VECTOR if name.endswith("bias") else forms.SAME


_DROPPED = "pre_logits/"
_REPRESENTATION = (
    "the head was trained behind pre_logits, a layer that our models do not have and the original code drops too: "
    "train the head anew before classifying (head=reinit)"
)


def recognise(archive: Archive, name: str) -> Contents:
    """What an npz of the original code's names holds, read as the variant `name`.

    Raises:
      UserError: when it is of another family, or of none.
    """
    headers, source = archive.headers, archive.source
    _refuse_attention_pooling(headers, source)
    kind, prefix = layouts.find(headers)
    if kind == "two_towers" and not is_pair(name):
        kind, prefix = "vit", f"{prefix}img/"  # a pair's image tower by itself
    tower = prefix + ("img/" if kind == "two_towers" else "")
    has_class = f"{tower}cls" in headers
    layout = layouts.layout_of(headers, prefix, has_class)
    shapes = {name.removeprefix(tower): one.shape for name, one in headers.items() if name.startswith(tower)}
    facts = _facts(kind, shapes, layout)
    model = describe(name, facts, source)
    dropped = {one: "no layer of the model" for one in headers if one.startswith(tower + _DROPPED)}
    outside = {one: f"not below {prefix}" for one in headers if not one.startswith(prefix)}
    return Contents(
        description=model,
        places=places(model, layout),
        family=families.published_family(model),
        set_aside={**outside, **dropped},
        layout=layout,
        head_remarks=(_REPRESENTATION,) if dropped and facts.num_classes else (),
    )


def _refuse_attention_pooling(headers: Collection[str], source: str) -> None:
    found = [name for name in headers if "MAPHead_0/" in name or name.rpartition("/")[2] == "probe"]
    if found:
        raise UserError(
            f"{source} pools by attention ({found[0]}), which our models do not; give a file with a class token or mean pooling"
        )


def _facts(kind: layouts.Kind, shapes: Mapping[str, Shape], layout: Layout) -> Facts:
    first = next(
        shapes[name] for name in ("conv_root/kernel", "embedding/kernel", "stem/kernel") if name in shapes
    )
    has_class = "cls" in shapes
    mixed = shapes.get("MixerBlock_0/token_mixing/Dense_0/kernel", (0,))
    return Facts(
        kind=kind,
        channels=first[2] if len(first) == 4 else 3,
        num_classes=(shapes.get("head/bias") or (0,))[0],
        positions=shapes.get(layout.positions),
        prefix_rows=int(has_class and layout.class_row),
        mixed_patches=mixed[0] if mixed else 0,
        has_class=has_class,
        has_stem="conv_root/kernel" in shapes,
    )
