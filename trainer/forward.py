"""The forward pass of a training: its number format, its regularisation, and how it goes through the blocks."""

import dataclasses

import jax
from jax.sharding import Mesh

from trainer.config import Experiment
from trainer.description import Classifier
from trainer.distributed import rules
from trainer.models.build import Params, bind
from trainer.models.computing import in_dtype
from trainer.models.eight_bits import in_eight_bits
from trainer.models.layers import Layers
from trainer.models.outputs import Outputs
from trainer.models.regularisation import Regularisation


@dataclasses.dataclass(frozen=True)
class Forward:
    """How a training computes what a model says; parameters stay in float32."""

    dtype: str
    layers: Layers
    rates: Regularisation

    @staticmethod
    def of(experiment: Experiment, mesh: Mesh) -> "Forward":
        """As `experiment` asks for it."""
        layers = Layers(experiment.remat, experiment.scan_blocks, rules.activations(mesh))
        return Forward(experiment.dtype, layers, Regularisation(experiment.do, experiment.sd))

    @property
    def draws(self) -> bool:
        """Whether it needs a key."""
        return self.rates.dropout > 0 or self.rates.stochastic_depth > 0

    def outputs(
        self,
        model: Classifier,
        params: Params,
        images: jax.Array,
        key: jax.Array | None = None,
        rounded: bool = False,
    ) -> Outputs:
        """What `model` says of normalised images (B, H, W, C); `rounded`: with products as int8 exports them."""
        module = bind(model, in_dtype(params, self.dtype))
        module = in_eight_bits(module) if rounded else module
        return module.outputs(
            images.astype(self.dtype), regularisation=self.rates, key=key, layers=self.layers
        )
