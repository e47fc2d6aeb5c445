"""The recipe of any model, as it is typed: on an archive in CIFAR-10's format, for a few steps of a few images."""

from pathlib import Path

import pytest

from tests.support import pictures, trainings
from tools.dev.seeded_weights import main as seeded_weights

FEW = [
    *("--config.total_steps=2", "--config.warmup_steps=1", "--config.batch=4", "--config.batch_eval=10"),
    "--config.log_every=1",
]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures.write_cifar10(tmp_path_factory.mktemp("cifar"))


@pytest.mark.slow
def test_a_small_model_is_trained(data_dir: Path, tmp_path: Path) -> None:
    command = [
        *("--config=configs/augreg.py:Ti_16", "--config.dataset=cifar10", "--config.base_lr=0.03"),
        *("--config.wd=0.03", "--config.do=0.0", "--config.sd=0.0", f"--config.data_dir={data_dir}"),
    ]
    code, output, log = trainings.train(tmp_path / "vit-pruning", [*command, *FEW])
    assert code == 0, log
    result = trainings.result(output)
    assert (result["stage"], result["steps"], result["params"]) == ("trained", 2, 5_526_346)
    assert len(trainings.losses(tmp_path / "vit-pruning")) == 2


@pytest.mark.slow
def test_a_hybrid_is_distilled_from_a_published_file(data_dir: Path, tmp_path: Path) -> None:
    weights = tmp_path / "B_16.npz"
    seeded_weights(["--model=B_16", f"--output={weights}", "--classes=10"])
    command = [
        *("--config=configs/augreg.py:R_Ti_16", "--config.teacher_model=B_16"),
        *("--config.distill_weight=0.5", f"--config.data_dir={data_dir}"),
    ]
    refused = trainings.train(tmp_path / "vit-distill", [*command, *FEW])
    assert refused[0] == 2
    assert (
        "distill_weight is above 0 but teacher_weights names no checkpoint; teacher_model=B_16 says only"
        in refused[2]
    )
    assert not (tmp_path / "vit-distill").exists()
    lost = trainings.train(
        tmp_path / "vit-distill", [*command, *FEW, f"--config.teacher_weights={tmp_path / 'gone.npz'}"]
    )
    assert lost[0] == 2
    assert "gone.npz" in lost[2]
    code, output, log = trainings.train(
        tmp_path / "vit-distill", [*command, *FEW, f"--config.teacher_weights={weights}"]
    )
    assert code == 0, log
    assert trainings.result(output)["stage"] == "distilled"
    assert len(trainings.losses(tmp_path / "vit-distill")) == 2
