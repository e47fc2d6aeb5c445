"""Whose names a file's arrays have, which says how to read them."""

from serving.command import UserError
from trainer.weights import huggingface, layouts, published, timm
from trainer.weights.archive import Archive
from trainer.weights.contents import Contents
from trainer.weights.source import json_beside

_CONFIG, _PREPROCESSOR = "config.json", "preprocessor_config.json"


def recognise(archive: Archive, name: str) -> Contents:
    """What `archive` holds, read as the variant `name`; timm's config.json can name it in its place.

    Raises:
      UserError: when the names are nobody's that we know, or `name` is of another family.
    """
    headers = archive.headers
    if layouts.is_published(headers):
        return published.recognise(archive, _required(name, archive))
    if any(anchor in headers for anchor in timm.ANCHORS):
        config = json_beside(archive.source, _CONFIG)
        return timm.recognise(
            archive, _required(name or str(config.get("architecture", "")), archive), config
        )
    if huggingface.is_hugging_face(headers):
        config, preprocessor = (json_beside(archive.source, file) for file in (_CONFIG, _PREPROCESSOR))
        return huggingface.recognise(archive, _required(name, archive), config, preprocessor)
    seen = ", ".join(sorted(headers)[:3]) or "nothing"
    raise UserError(
        f"{archive.source} is of no family that is read: its arrays have no names of the original code, of timm or of "
        f"transformers' ViT and DeiT; it has {len(headers)}, beginning with {seen}"
    )


def _required(name: str, archive: Archive) -> str:
    if not name:
        raise UserError(
            f"{archive.source} does not say which model it is of; give its name (python -m tools.models lists all)"
        )
    return name
