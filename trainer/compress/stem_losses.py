"""What it costs to cut inside one unit of a hybrid's stem: KL to the teacher with that unit cut and repaired, and all else whole.

As `losses` does for the parts of a block, at the teacher's own sizes.
"""

import dataclasses

from serving.command import progress
from trainer.compress import cells, stem
from trainer.compress.allocate import best
from trainer.compress.losses import Losses, Table, falling
from trainer.compress.moments import Array
from trainer.compress.padding import padded_unit
from trainer.compress.plan import Unit
from trainer.compress.repair import Repair
from trainer.compress.scores import Scores
from trainer.description import ViT
from trainer.models.build import Params
from trainer.models.stem import gates_name

_PARTS = (3 / 4, 1 / 2, 1 / 4)  # of the groups of a unit, at which losses are measured


def measure(
    teacher: ViT, params: Params, scores: Scores, fitted: Array, held_out: Array, how: Repair
) -> Losses:
    """The losses of every unit under the kind `stem`, from the input up; none without a stem that has units.

    As `losses.measure`: repaired on images `fitted`, judged on images `held_out`.
    """
    if not teacher.stem or not teacher.stem.num_units:
        return []
    plain, start = stem.folded(teacher, params)
    model = dataclasses.replace(teacher, stem=plain)
    table = Table(model, start, held_out, how.batch)
    fitting, judging = (cells.begin(model, start, images, how.batch) for images in (fitted, held_out))
    found = []
    with progress(plain.num_units, "stem") as bar:
        for index, place in enumerate(plain.places):
            own, whole = cells.unit_params(start, place), cells.groups(plain)[index]
            losses, sizes = [], sorted({max(int(whole * part), 1) for part in _PARTS} - {whole})
            for left in sizes:
                score = scores[gates_name(index)]
                unit = Unit(*(best(score[name], left) for name in ("conv1", "conv2")))
                new = stem.cut_unit(plain, place, own, unit, (fitting, fitting), how.batch, how.ridge)
                after = cells.advance(plain, place, padded_unit(plain, place, new), judging, how.batch)
                for later in plain.places[index + 1 :]:
                    after = cells.advance(plain, later, cells.unit_params(start, later), after, how.batch)
                losses.append(table.loss_of(cells.place(model, start, after, how.batch)))
            found.append({"stem": falling(sizes, losses, whole)})
            fitting, judging = (
                cells.advance(plain, place, own, before, how.batch) for before in (fitting, judging)
            )
            bar.advance()
    return found
