"""`load_weights`: weights of any origin, ready to be trained, exported or served, with a report of what became of every array.

    path → fetched, digest compared → archive opened → recognised by its names (published npz, timm, Hugging Face)
         → described as it is stored → arrays read → positions resized, head kept, made anew or removed → Weights

Our own checkpoints and bundles say themselves what they are. Nothing is returned unless everything is there.
"""

import dataclasses
from collections.abc import Collection
from pathlib import Path

from serving.command import UserError
from serving.preprocess import PreprocessSpec
from trainer.data.labels import class_names
from trainer.description import Mixer, Model, ViT
from trainer.models.build import Params, unflatten
from trainer.weights import adapt, families
from trainer.weights.adapt import Arrays, Head, Stored, Wanted
from trainer.weights.archive import Archive, open_archive
from trainer.weights.contents import Contents
from trainer.weights.layouts import Layout
from trainer.weights.recognise import recognise
from trainer.weights.report import Report
from trainer.weights.source import check_digest_form, fetched, is_url
from trainer.weights.transfer import take


@dataclasses.dataclass(frozen=True)
class Weights:
    """A described model with its parameters, float32 on the host.

    `preprocess` is how images become its input, None where its origin does not say; `labels` the names of its classes, () where
    nobody wrote them down. `family` says by whose conventions it is computed and fed. `sha256` is of the file that was read; of a
    checkpoint, that of its arrays (`trainer.checkpoint.weights_hash`). `layout` is that of the npz it came from.
    """

    description: Model
    params: Params
    preprocess: PreprocessSpec | None
    labels: tuple[str, ...]
    family: str
    sha256: str
    report: Report
    layout: Layout | None = None

    @property
    def class_names(self) -> tuple[str, ...]:
        """The labels; where nobody wrote any down, ImageNet's names for a head with as many outputs as it has classes."""
        model = self.description
        return self.labels or (class_names(model.num_classes) if isinstance(model, ViT | Mixer) else ())

    def prepared(self, path: str, size: tuple[int, int]) -> PreprocessSpec:
        """How images become the input of these weights, which came from `path`, at this (H, W).

        Raises:
          UserError: when their origin does not say.
        """
        if self.preprocess is None:
            raise UserError(
                f"{path} does not say how images are prepared for it; use weights of a known family"
            )
        return dataclasses.replace(self.preprocess, height=size[0], width=size[1])


def load_weights(
    path: str,
    model: str = "",
    *,
    image_size: tuple[int, int] | None = None,
    head: Head = "keep",
    num_classes: int | None = None,
    sha256: str = "",
    allow: Collection[str] = (),
    seed: int = 0,
) -> Weights:
    """The weights at `path`.

    Args:
      path: an npz or safetensors file, local or any URL of fsspec; or the folder of a checkpoint or bundle of ours.
      model: what they are of, any spelling of `trainer.description.named`; our own say it themselves.
      image_size: (H, W) to resize position embeddings for; the stored size when None.
      head: "keep" the stored one, "reinit" a head of zeros for `num_classes`, or "remove" it.
      num_classes: classes of a new head; as many as are stored when None.
      sha256: of the file, in hexadecimal; not compared when empty.
      allow: what may differ: "missing" arrays are made fresh, "unused" ones left out; "resized" is what asking for an
        `image_size` allows already.
      seed: of what is made fresh.

    Raises:
      UserError: when the file cannot be read, is another than asked for, or does not fit `model`.
    """
    wanted = Wanted(image_size, head, num_classes, frozenset(allow), seed)
    check_digest_form(sha256)
    if not is_url(path) and Path(path).is_dir():
        file = Path(path) / _SAFETENSORS
        if not file.is_file():
            return _own(Path(path), model, wanted, sha256)
        path = str(file)
    with fetched(path, sha256) as source, open_archive(source.path, source.shown) as archive:
        return _loaded(archive, recognise(archive, model), wanted, source.sha256)


_SAFETENSORS = "model.safetensors"  # the name under which timm and transformers publish


def _own(folder: Path, model: str, wanted: Wanted, sha256: str) -> Weights:
    from trainer.weights.own import (
        load_own,
    )  # brings Orbax and ONNX with it, which files of weights do without

    if sha256:
        raise UserError(f"{folder} is a folder, and a SHA-256 is of one file; leave sha256 out")
    own = load_own(folder, model)
    final = adapt.adapted(own.stored, wanted, str(folder))
    return Weights(
        description=final.model,
        params=unflatten(final.arrays),
        preprocess=families.resized(own.preprocess, final.model),
        labels=own.labels if wanted.head == "keep" else (),
        family=own.family,
        sha256=own.digest,
        report=final.report,
    )


def _loaded(archive: Archive, contents: Contents, wanted: Wanted, sha256: str) -> Weights:
    model, source = contents.description, archive.source
    new_head = adapt.replaced_head(model, wanted, source)
    taken = take(archive, contents, adapt.shapes_of(model), new_head, wanted.allow)
    report = Report(loaded=tuple(taken.arrays), unused=taken.unused, remarks=_on_head(contents, taken.arrays))
    whole = adapt.filled(Stored(model, taken.arrays, report), taken.missing, wanted.seed)
    final = adapt.adapted(whole, wanted, source)
    return Weights(
        description=final.model,
        params=unflatten(final.arrays),
        preprocess=families.preprocess_of(contents.family, final.model, contents.preprocess),
        labels=contents.labels if wanted.head == "keep" else (),
        family=contents.family,
        sha256=sha256,
        report=final.report,
        layout=contents.layout,
    )


_NO_HEAD = "the head is all zeros, as it was published: train it before classifying"


def _on_head(contents: Contents, arrays: Arrays) -> tuple[str, ...]:
    """What to know of the stored head, where it was taken."""
    kernel = arrays.get("head/kernel")
    if kernel is None:
        return ()
    return contents.head_remarks + (() if kernel.any() else (_NO_HEAD,))
