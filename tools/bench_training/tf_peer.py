"""What our trainer is compared with, in the environment of `make tf`: tf.data, and vision_transformer's training step.

Started by `tools.bench_training`; reads one JSON object a line from stdin: what it is about, then one for each measurement. Answers
each with one on stdout.
"""

import functools
import json
import subprocess
import sys
import time
import types
from collections.abc import Callable
from typing import Any

_SIZE = 224
Answer = Callable[[dict[str, Any]], float]


def tf_data(told: dict[str, Any]) -> tuple[dict[str, Any], Answer]:
    """Images a second of tf.data over files, with so many threads (0: as it likes)."""
    import tensorflow as tf

    def view(path: Any) -> Any:
        content = tf.io.read_file(path)
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            tf.io.extract_jpeg_shape(content),
            tf.constant([[[0.0, 0.0, 1.0, 1.0]]]),
            area_range=(0.05, 1.0),
            use_image_if_no_bounding_boxes=True,
        )
        window = tf.stack([begin[0], begin[1], size[0], size[1]])
        image = tf.image.resize(tf.io.decode_and_crop_jpeg(content, window, channels=3), (_SIZE, _SIZE))
        return tf.image.random_flip_left_right(tf.cast(image, tf.uint8))

    @functools.cache
    def pipeline(threads: int) -> Any:
        data = tf.data.Dataset.from_tensor_slices(told["files"])
        data = data.map(view, threads or tf.data.AUTOTUNE).batch(32).prefetch(2)
        options = tf.data.Options()
        options.threading.private_threadpool_size = threads
        return data.with_options(options)

    def images_per_s(asked: dict[str, Any]) -> float:
        began_s = time.monotonic()
        for _ in pipeline(asked["threads"]):
            pass
        return len(told["files"]) / (time.monotonic() - began_s)

    for threads in (0, 1):
        images_per_s({"threads": threads})  # traces the graph
    return {"version": tf.__version__}, images_per_s


def photographs(told: dict[str, Any]) -> tuple[dict[str, Any], Answer]:
    """Writes scikit-image's sample photographs in colour that are large enough, as PNG, into a folder."""
    from pathlib import Path

    from skimage import data, io

    folder = Path(told["folder"])
    folder.mkdir(parents=True)
    for name in ("astronaut", "coffee", "rocket", "chelsea"):
        io.imsave(folder / f"{name}.png", getattr(data, name)())
    return {}, lambda _: 0.0


def vision_transformer(told: dict[str, Any]) -> tuple[dict[str, Any], Answer]:
    """Seconds of a training step, the mean of so many; as `vit_jax.train` builds and calls it."""
    sys.path.insert(0, told["checkout"])
    # Text towers need what is hard to install, and are not asked for here.
    sys.modules["vit_jax.models_lit"] = types.SimpleNamespace(LitModel=None)  # type: ignore[assignment]
    import flax
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    from vit_jax import models, train, utils
    from vit_jax.configs import models as configs

    settings = getattr(
        configs, f"get_{told['model'].lower().replace('_16', '16').replace('_32', '32')}_config"
    )()
    model = models.VisionTransformer(num_classes=told["classes"], **settings)
    rng, batch, size = np.random.default_rng(0), told["batch"], told["size"]
    images = rng.random((1, batch, size, size, 3), np.float32) * 2 - 1
    labels = np.eye(told["classes"], dtype=np.float32)[rng.integers(0, told["classes"], (1, batch))]
    params = model.init(jax.random.PRNGKey(0), jnp.ones((1, size, size, 3)), train=False)["params"]
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    rate = utils.create_learning_rate_schedule(1000, 0.03, "cosine", 10)
    tx = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.sgd(learning_rate=rate, momentum=0.9, accumulator_dtype="bfloat16"),
    )
    update = train.make_update_fn(apply_fn=model.apply, accum_steps=1, tx=tx)
    held = [
        *flax.jax_utils.replicate((params, tx.init(params))),
        flax.jax_utils.replicate(jax.random.PRNGKey(0)),
    ]
    given = {"image": jax.device_put(images), "label": jax.device_put(labels)}

    def seconds(asked: dict[str, Any]) -> float:
        began_s = time.monotonic()
        for _ in range(asked["steps"]):
            held[0], held[1], loss, held[2] = update(held[0], held[1], given, held[2])
        jax.block_until_ready((loss, held[0]))
        return (time.monotonic() - began_s) / asked["steps"]

    seconds({"steps": 2})  # compiles, and again for arrays as a step gives them
    commit = subprocess.run(
        ["git", "-C", told["checkout"], "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True
    )
    return {"params": count, "commit": commit.stdout.strip()}, seconds


_VERBS = {"tf_data": tf_data, "photographs": photographs, "vision_transformer": vision_transformer}


def main() -> None:
    """Answers until stdin ends."""
    said, measure = _VERBS[sys.argv[1]](json.loads(sys.stdin.readline()))
    print(json.dumps(said), flush=True)
    for line in sys.stdin:
        print(json.dumps({"value": measure(json.loads(line))}), flush=True)


if __name__ == "__main__":
    main()
