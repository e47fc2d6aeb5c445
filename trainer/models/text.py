"""The text towers of LiT (Zhai et al. 2022, arXiv:2111.07991) as one Flax NNX module: a small transformer, or BERT.

Both look in all directions: no token hides what follows it. Only BERT hides padding, which is token 0.

Shapes: B batch, T tokens, D width, E embedding.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from serving.command import UserError
from trainer.description import TextTower
from trainer.models.encoder import EncoderBlock, blocks_of

_SEGMENTS = 2  # BERT's table tells a first from a second sentence; a text here is all first


class TextEncoder(nnx.Module):
    """Tokens (B, T) int → embeddings (B, E)."""

    def __init__(self, model: TextTower, rngs: nnx.Rngs) -> None:
        self.model = model
        # BERT: Devlin et al. 2019, arXiv:1810.04805; the small transformer draws at the scale of its width.
        draw = nnx.initializers.normal(0.02 if model.style == "bert" else model.width**-0.5)
        self.token = nnx.Param(draw(rngs.params(), (model.vocab_size, model.width)))
        self.pos = nnx.Param(draw(rngs.params(), (1, model.num_positions, model.width)))
        if model.style == "bert":
            self.segment = nnx.Param(draw(rngs.params(), (_SEGMENTS, model.width)))
            self.embed_norm = nnx.LayerNorm(model.width, epsilon=model.norm_eps, rngs=rngs)
        self.blocks = blocks_of(model, rngs)
        if model.style == "transformer":
            self.norm = nnx.LayerNorm(model.width, epsilon=model.norm_eps, rngs=rngs)
        if model.embed_dim:
            self.head = nnx.Linear(model.width, model.embed_dim, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Embeddings (B, E), not normalised.

        Raises:
          UserError: when texts are not of the length that there are positions for.
        """
        self._check_length(tokens.shape[1])
        x = jnp.take(self.token[...], tokens, axis=0) + self.pos[:, : tokens.shape[1]]
        read = self._bert(x, tokens) if self.model.style == "bert" else self._transformer(x)
        return self.head(read) if self.model.embed_dim else read

    def _check_length(self, length: int) -> None:
        most, exactly = self.model.num_positions, self.model.style == "transformer"
        if length > most or (exactly and length != most):
            bound = "exactly" if exactly else "at most"
            raise UserError(f"texts of {length} tokens do not fit a text tower that takes {bound} {most}")

    def _transformer(self, x: jax.Array) -> jax.Array:
        """Embedded tokens (B, T, D) → what the last token has become (B, D)."""
        for index in range(len(self.blocks)):
            x = _norm_first(self.blocks[str(index)], x)
        return self.norm(x)[:, -1]

    def _bert(self, x: jax.Array, tokens: jax.Array) -> jax.Array:
        """Embedded tokens (B, T, D) → what the first token has become (B, D)."""
        present = tokens != 0
        mask = present[:, :, None] & present[:, None, :]
        x = self.embed_norm(x + self.segment[0])
        for index in range(len(self.blocks)):
            x = _norm_last(self.blocks[str(index)], x, mask)
        return x[:, 0]


def _norm_first(block: EncoderBlock, x: jax.Array) -> jax.Array:
    if block.has_attention:
        x = x + block.attend(x)[0]
    return x + block.transform(x)[0] if block.has_mlp else x


def _norm_last(block: EncoderBlock, x: jax.Array, mask: jax.Array) -> jax.Array:
    if block.has_attention:
        x = block.norm1(x + block.attention(x, mask=mask)[0])
    return block.norm2(x + block.mlp(x)[0]) if block.has_mlp else x
