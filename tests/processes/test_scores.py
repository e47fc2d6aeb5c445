"""Scores are summed over the devices of all processes: each of two has those of one process with one device."""

from pathlib import Path

import numpy as np

from tests.support import trainings
from tests.support.trainings import ended, start


def test_two_processes_of_four_devices_score_as_one_device_does(tmp_path: Path) -> None:
    code, _, log = ended(start(["tests.support.says_scores", str(tmp_path)]))
    assert code == 0, log
    (tmp_path / "0.npz").rename(tmp_path / "alone.npz")
    job = [
        "--backend=local",
        "--processes=2",
        "--devices_per_process=4",
        f"--timeout_s={trainings.PATIENCE_S}",
    ]
    asked = ["python", "-m", "tests.support.says_scores", str(tmp_path)]
    code, _, log = ended(start(["tools.launch", "run", *job, "--", *asked]))
    assert code == 0, log
    with np.load(tmp_path / "alone.npz") as file:
        wanted = dict(file)
    for process in (0, 1):
        with np.load(tmp_path / f"{process}.npz") as file:
            found = dict(file)
        assert found.keys() == wanted.keys()
        for name, values in wanted.items():
            # float32 gradients of images in other batches: a few 1e-7 of the largest, squared and summed.
            np.testing.assert_allclose(
                found[name], values, rtol=1e-4, atol=1e-6 * np.abs(values).max(), err_msg=name
            )
