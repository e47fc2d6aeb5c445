"""The text towers of LiT."""

import dataclasses
from typing import Literal

from serving.command import UserError
from trainer.description.vit import Block, check_blocks, check_sizes


@dataclasses.dataclass(frozen=True)
class TextTower:
    """Tokens (B, T) → one embedding of each text (B, E).

    `transformer`: pre-LayerNorm, reads the last token; every text has `num_positions` tokens (Zhai et al. 2022, arXiv:2111.07991).
    `bert`: post-LayerNorm, reads the first token, token 0 is padding and masked (Devlin et al. 2019, arXiv:1810.04805), without
    pooler; texts have at most `num_positions` tokens. `embed_dim` of 0 means no projection: E is the width.
    """

    style: Literal["transformer", "bert"]
    vocab_size: int
    num_positions: int
    max_tokens: int  # T, what the tokeniser pads and cuts to
    width: int
    blocks: tuple[Block, ...]
    embed_dim: int
    gelu: Literal["tanh", "erf"] = "tanh"
    norm_eps: float = 1e-6
    kind: Literal["text"] = "text"

    def __post_init__(self) -> None:
        check_sizes(self, ("vocab_size", "num_positions", "max_tokens", "width"))
        check_blocks(self.blocks)
        if any(block.merge for block in self.blocks):
            raise UserError("the blocks of a text tower merge no tokens; leave out their merge")
        if self.style not in ("transformer", "bert") or self.gelu not in ("tanh", "erf"):
            raise UserError(
                f"style {self.style!r} must be transformer or bert, and gelu {self.gelu!r} tanh or erf"
            )
        if self.max_tokens > self.num_positions or (
            self.style == "transformer" and self.max_tokens != self.num_positions
        ):
            raise UserError(
                f"max_tokens {self.max_tokens} does not fit {self.num_positions} positions of a {self.style} tower"
            )

    @property
    def num_outputs(self) -> int:
        """E, the size of an embedding."""
        return self.embed_dim or self.width
