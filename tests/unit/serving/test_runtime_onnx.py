"""The ONNX Runtime engine and the choice of an engine by name."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from serving.command import UserError
from serving.runtime.select import RUNTIMES, open_runtime
from tests.support import bundles
from tests.support.servers import ROOT

# float32 sums of 64 products of numbers around 1, in another order: a few 1e-6.
CLOSE = 1e-4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundles.write_tiny(tmp_path_factory.mktemp("repository")).path / "model.onnx"


@pytest.mark.parametrize("batch", [1, 2, 3, 7, 8, 33])
def test_any_batch_is_taken_by_one_session(model: Path, batch: int) -> None:
    runtime = open_runtime(model, "onnxruntime", 1)
    for rows in (batch, 5, batch):  # sizes change from call to call
        images = bundles.images(rows, seed=rows)
        answer = runtime.run({"images": images})
        assert list(answer) == ["logits"]
        np.testing.assert_allclose(answer["logits"], bundles.logits(images), atol=CLOSE)


def test_the_bytes_of_a_model_answer_like_its_file(model: Path) -> None:
    images = bundles.images(4)
    by_file, by_bytes = (open_runtime(source, "onnxruntime", 1) for source in (model, model.read_bytes()))
    np.testing.assert_array_equal(
        by_file.run({"images": images})["logits"], by_bytes.run({"images": images})["logits"]
    )
    by_file.close()
    by_bytes.close()


# Says how many threads of the process a session has added. A process of its own, because threads of others come and go here.
_COUNT = """
import os, sys
from serving.runtime.select import open_runtime
threads = lambda: len(os.listdir("/proc/self/task"))
open_runtime(sys.argv[1], "onnxruntime", 1)  # whatever the first session starts for all
before = threads()
kept = open_runtime(sys.argv[1], "onnxruntime", int(sys.argv[2]))
print(threads() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted in Linux's /proc")
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_a_session_computes_on_as_many_threads_as_it_was_told(model: Path, threads: int) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", _COUNT, str(model), str(threads)], cwd=ROOT, capture_output=True, text=True
    )
    assert ended.stdout == f"{threads - 1}\n", ended.stderr  # the calling thread computes as well


def test_several_threads_may_ask_one_session_at_once(model: Path) -> None:
    runtime = open_runtime(model, "onnxruntime", 1)
    wrong: list[int] = []

    def ask(seed: int) -> None:
        images = bundles.images(seed + 1, seed=seed)
        for _ in range(20):
            if np.abs(runtime.run({"images": images})["logits"] - bundles.logits(images)).max() > CLOSE:
                wrong.append(seed)

    askers = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    assert wrong == []


def broken(tmp_path: Path, case: str, whole: bytes) -> Path:
    path = tmp_path / f"{case}.onnx"
    content = {
        "empty": b"",
        "text": b"no model\nat all\n",
        "half": whole[: len(whole) // 2],
        "missing": None,
    }[case]
    if content is not None:
        path.write_bytes(content)
    return path


@pytest.mark.parametrize("case", ["empty", "text", "half", "missing"])
def test_a_broken_file_is_one_line_that_names_file_and_engine(model: Path, tmp_path: Path, case: str) -> None:
    path = broken(tmp_path, case, model.read_bytes())
    with pytest.raises(UserError) as refused:
        open_runtime(path, "onnxruntime", 1)
    message = str(refused.value)
    assert message.startswith(f"{path} cannot be loaded by ONNX Runtime ")
    assert "\n" not in message


def test_broken_bytes_are_refused_too() -> None:
    with pytest.raises(UserError, match=r"^the model cannot be loaded by ONNX Runtime "):
        open_runtime(b"no model", "onnxruntime", 1)


@pytest.mark.parametrize("name", ["", "tensorrt", "ONNXRUNTIME"])
def test_an_unknown_runtime_is_refused_with_those_there_are(model: Path, name: str) -> None:
    with pytest.raises(UserError) as refused:
        open_runtime(model, name, 1)
    assert str(refused.value) == f"unknown runtime {name!r}; this Vitforge has {', '.join(RUNTIMES)}"


def test_without_onnxruntime_the_refusal_says_what_to_install(model: Path) -> None:
    program = (
        "import sys; sys.modules['onnxruntime'] = None\n"
        "from serving.runtime.select import open_runtime\n"
        f"open_runtime({os.fspath(model)!r}, 'onnxruntime', 1)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert "onnxruntime is not installed; install vitforge[serve]" in ended.stderr.splitlines()[-1]


def test_choosing_an_engine_imports_none_of_them() -> None:
    program = "import sys, serving.runtime.select; print('onnxruntime' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert ended.stdout == "False\n"
