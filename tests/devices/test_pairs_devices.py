"""Images and texts on eight devices: every image is compared with every text of the global batch, wherever it lies."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from serving.preprocess import PreprocessSpec
from tests.support.small_models import SMALL
from trainer import config
from trainer.config import MeshShape
from trainer.contrasting import Contrasting
from trainer.description import TextTower, TwoTowers, uniform
from trainer.distributed import rules
from trainer.distributed.mesh import batch_sharding, make_mesh
from trainer.models.build import flatten, init_params

SPEC = PreprocessSpec("L", 8, 8, (127.5,), (127.5,))
IMAGE = dataclasses.replace(SMALL, num_classes=0)
TEXT = TextTower(
    style="bert",
    vocab_size=30,
    num_positions=6,
    max_tokens=6,
    width=16,
    blocks=uniform(1, 2, 8, 32),
    embed_dim=IMAGE.num_outputs,
    norm_eps=1e-12,
)
ROWS = 16


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2), (1, 8, 1)])
def test_loss_and_gradients_are_those_of_one_device(shape: tuple[int, int, int], loss: str) -> None:
    model = TwoTowers(IMAGE, TEXT, loss == "sigmoid")
    given = {
        "contrastive_loss": loss,
        "pretrained": "x",
        "dataset": "pairs:x.jsonl",
        "text.vocab": "x.txt",
        "total_steps": 1,
    }
    experiment = config.experiment(
        "configs/lit.py", [(name, str(value)) for name, value in {**given, "warmup_steps": 0}.items()]
    )
    task = Contrasting(experiment, model, SPEC)
    rng = np.random.default_rng(0)
    batch = {
        "image": jnp.asarray(rng.normal(size=(ROWS, 8, 8, 1)), jnp.float32),
        "label": jnp.asarray(rng.integers(0, 30, (ROWS, 6)), jnp.int32),
    }
    params = jax.device_get(init_params(model, 0))

    @jax.jit
    def both(params, batch):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        return jax.value_and_grad(lambda params: task.loss(params, batch, None, jnp.int32(0), None)[0])(
            params
        )

    alone = jax.device_get(both(params, batch))
    mesh = make_mesh(MeshShape(*shape))
    together = jax.device_get(both(rules.place(params, mesh), jax.device_put(batch, batch_sharding(mesh))))
    # A device that compared its own rows alone would find a loss near log(2) in place of log(16).
    assert together[0] == pytest.approx(alone[0], rel=1e-5)
    ours, theirs = flatten(together[1]), flatten(alone[1])
    for name, gradient in theirs.items():
        np.testing.assert_allclose(
            ours[name], gradient, atol=1e-5 * max(1.0, np.abs(gradient).max()), err_msg=name
        )
