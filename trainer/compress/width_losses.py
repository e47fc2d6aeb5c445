"""What it costs to narrow the residual stream: KL to the teacher with fewer of its directions, and all else whole.

As `losses` does for the parts of a block, at the teacher's own width: a stream that is turned back behind each cut is read as a
narrower one would be. A search tries widths as a whole; these losses are for people.
"""

import numpy as np

from trainer.compress import streams, width
from trainer.compress.losses import Losses, divergence, falling
from trainer.compress.moments import Array
from trainer.description import ViT
from trainer.models.build import Params

_PARTS = (3 / 4, 1 / 2, 1 / 4)  # of the channels, at which losses are measured


def measure(teacher: ViT, params: Params, directions: Array, held_out: Array, batch: int) -> Losses:
    """The loss of the stream under the kind `width`, on images `held_out`; none where its width cannot be cut.

    `directions` (D, D - 1) are the stream's, the first ones kept (`width.principal_directions`).
    """
    if not teacher.num_classes:
        return []
    wanted = streams.logits(teacher, params, held_out, batch)
    sizes = sorted({max(int(teacher.width * part), 2) for part in _PARTS})

    def loss(size: int) -> float:
        kept = directions[:, : size - 1]
        model, narrow = width.narrow(teacher, params, np.asarray(kept @ kept.T))
        return divergence(wanted, streams.logits(model, narrow, held_out, batch))

    return [{"width": falling(sizes, [loss(size) for size in sizes], teacher.width)}]
