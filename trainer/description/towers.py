"""Two towers into one embedding space: LiT."""

import dataclasses
from typing import Literal

from serving.command import UserError
from trainer.description.text import TextTower
from trainer.description.vit import ViT


@dataclasses.dataclass(frozen=True)
class TwoTowers:
    """An image and a text tower whose L2-normalised embeddings are compared at a learned temperature (LiT, arXiv:2111.07991).

    With `bias` a learned number is added to what is compared, as the sigmoid loss wants it (SigLIP, arXiv:2303.15343).
    """

    image: ViT
    text: TextTower
    bias: bool = False
    kind: Literal["two_towers"] = "two_towers"

    def __post_init__(self) -> None:
        if self.image.num_outputs != self.text.num_outputs:
            raise UserError(
                f"the image tower makes embeddings of {self.image.num_outputs} values, "
                f"the text tower of {self.text.num_outputs}; they must agree"
            )
