"""The repository: what it takes for a bundle, what it must have proven before it is ready, and how models are found."""

import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving import bundle as bundle_module
from serving import repository as module
from serving.bundle import GOLDEN
from serving.command import UserError
from serving.errors import ModelNotFound
from serving.repository import Entry, Repository
from serving.runtime.base import Array, Runtime
from serving.runtime.select import open_runtime
from tests.support import bundles
from tests.support.bundles import rewrite_manifest


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundles.write_tiny(tmp_path_factory.mktemp("original")).path


@pytest.fixture
def add(tmp_path: Path, original: Path) -> Callable[..., Path]:
    """Puts a copy of a good bundle at NAME/VERSION, its manifest changed by a function."""

    def adding(place: str, change: Callable[[dict[str, Any]], Any] | None = None) -> Path:
        path = tmp_path / place
        shutil.copytree(original, path)
        if change:
            rewrite_manifest(path, change)
        return path

    return adding


def loaded(root: Path, precision: str = "", opener: Callable[..., Runtime] = open_runtime) -> Repository:
    repository = Repository(root, opener, 1, precision)
    repository.load_all()
    return repository


def reason(root: Path, place: str, **options: Any) -> str:
    """Why the bundle at `place` is not served, beside a good one that is."""
    name, version = place.split("/")
    repository = loaded(root, **options)
    [entry] = [entry for entry in repository.index() if (entry.name, entry.version) == (name, version)]
    assert entry.state == "UNAVAILABLE"
    assert version not in repository.versions(name)
    assert "\n" not in entry.reason
    assert [model.name for model in repository.models()] == ["good"]
    return entry.reason


def test_the_newest_version_is_the_largest_number_and_others_are_found_by_name(
    tmp_path: Path, add: Any
) -> None:
    for version in (9, 10, 2):
        add(f"tiny/{version}")
    repository = loaded(tmp_path)
    assert repository.get("tiny").version == "10"
    assert repository.get("tiny", "9").version == "9"
    assert repository.versions("tiny") == ["2", "9", "10"]
    assert repository.versions("other") == []


def test_a_model_answers_as_it_was_exported(tmp_path: Path, add: Any) -> None:
    add("tiny/1")
    model = loaded(tmp_path).get("tiny")
    images = bundles.images(3)
    # float32 sums of 64 products, in another order.
    np.testing.assert_allclose(model.run(images), bundles.logits(images), atol=1e-4)
    assert (model.input_name, model.output_name) == ("images", "logits")


def test_a_model_is_called_after_its_folder(tmp_path: Path, add: Any) -> None:
    add("renamed/7")
    assert [(model.name, model.version) for model in loaded(tmp_path).models()] == [("renamed", "7")]


def test_an_unknown_model_is_refused_with_those_there_are(tmp_path: Path, add: Any) -> None:
    for name in ("b", "a"):
        add(f"{name}/1")
    with pytest.raises(ModelNotFound, match=r"^unknown model 'c'; this server has a, b$"):
        loaded(tmp_path).get("c")


@pytest.mark.parametrize("version", ["3", "01", "-1", "latest"])
def test_an_unknown_version_is_refused_with_those_there_are(tmp_path: Path, add: Any, version: str) -> None:
    for number in (10, 9):
        add(f"tiny/{number}")
    with pytest.raises(ModelNotFound, match=f"^model 'tiny' has no version '{version}'; it has 9, 10$"):
        loaded(tmp_path).get("tiny", version)


def test_what_is_no_version_is_not_looked_at(tmp_path: Path, add: Any) -> None:
    add("good/1")
    for place in (
        "good/01",
        "good/0",
        "good/v2",
        "good/2.0",
        "good/１",
        "good/.2-draft",
        "good/old/3",
        ".trash/4",
    ):
        add(place)
    (tmp_path / "good" / "5").write_text("a file")
    (tmp_path / "README").write_text("of the repository")
    assert loaded(tmp_path).index() == [Entry("good", "1", "READY")]


def test_a_bad_bundle_is_unavailable_with_its_reason_and_stops_no_other(
    tmp_path: Path, add: Any, caplog: pytest.LogCaptureFixture
) -> None:
    add("good/1")
    (add("altered/1") / "model.onnx").write_bytes(b"x")
    (tmp_path / "empty" / "1").mkdir(parents=True)
    add("good/2", lambda values: values.update(format_version=9))
    repository = loaded(tmp_path)
    assert [(entry.name, entry.version, entry.state) for entry in repository.index()] == [
        ("altered", "1", "UNAVAILABLE"),
        ("empty", "1", "UNAVAILABLE"),
        ("good", "1", "READY"),
        ("good", "2", "UNAVAILABLE"),
    ]
    named = ("model.onnx is not what was written", "no manifest.json", "", "has format version 9")
    for entry, text in zip(repository.index(), named, strict=True):
        assert text in entry.reason
        assert (entry.reason in caplog.text) or entry.state == "READY"
    assert repository.get("good").version == "1"
    with pytest.raises(ModelNotFound, match=r"this server has good$"):
        repository.get("altered")


def test_a_disk_that_fails_under_one_bundle_stops_no_other(
    tmp_path: Path, add: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    add("good/1")
    add("sick/1")
    whole = Path.read_bytes

    def read(self: Path) -> bytes:
        if "sick" in self.parts:
            raise OSError(5, "Input/output error", str(self))
        return whole(self)

    monkeypatch.setattr(Path, "read_bytes", read)
    assert "Input/output error" in reason(tmp_path, "sick/1")


def test_nothing_to_serve_is_a_users_error_that_says_why(tmp_path: Path, add: Any) -> None:
    with pytest.raises(UserError, match="is no folder"):
        loaded(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"holds no bundle \(NAME/VERSION"):
        loaded(tmp_path)
    (tmp_path / "repository.txt").write_text("x")
    with pytest.raises(UserError, match="is no folder"):
        loaded(tmp_path / "repository.txt")
    (add("a/1") / "model.onnx").write_bytes(b"x")
    (add("b/1") / GOLDEN).unlink()
    with pytest.raises(
        UserError, match=r"^no bundle in .* can be served: .*model\.onnx is not.*; .*golden\.npz is missing"
    ):
        loaded(tmp_path)


def regild(path: Path, change: Callable[[dict[str, Array]], Any]) -> None:
    """Changes the golden arrays of a bundle, with a digest to match."""
    with np.load(path / GOLDEN) as golden:
        arrays = dict(golden)
    change(arrays)
    np.savez(path / GOLDEN, **arrays)
    digest = bundle_module._digest((path / GOLDEN).read_bytes())
    rewrite_manifest(path, lambda values: values["digests"].update({GOLDEN: digest}))


GOLDEN_CHANGES: dict[str, tuple[Callable[[dict[str, Array]], Any], str]] = {
    "beyond the tolerance": (
        lambda arrays: arrays["outputs/logits"].__iadd__(0.01),
        "differ by 0.01, allowed is 0.001",
    ),
    "one logit": (lambda arrays: arrays["outputs/logits"].__setitem__((1, 9), 50), "differ by"),
    "NaN expected": (lambda arrays: arrays["outputs/logits"].__setitem__((0, 0), np.nan), "differ by nan"),
    "NaN answered": (
        lambda arrays: arrays["inputs/images"].__setitem__((0, 0, 0, 0), np.nan),
        "differ by nan",
    ),
    "other images": (lambda arrays: arrays["inputs/images"].__imul__(2), "differ by"),
}


@pytest.mark.parametrize("case", GOLDEN_CHANGES)
def test_a_model_that_does_not_give_its_golden_answers_is_not_ready(
    tmp_path: Path, add: Any, case: str
) -> None:
    add("good/1")
    change, named = GOLDEN_CHANGES[case]
    regild(add("wrong/1"), change)
    assert named in reason(tmp_path, "wrong/1")


def test_a_difference_within_the_tolerance_is_ready(tmp_path: Path, add: Any) -> None:
    regild(add("tiny/1"), lambda arrays: arrays["outputs/logits"].__iadd__(0.0005))
    assert loaded(tmp_path).get("tiny")


@pytest.mark.parametrize("tolerance", [0.0, -1.0, "NaN"])
def test_a_tolerance_of_nothing_allows_no_difference(tmp_path: Path, add: Any, tolerance: Any) -> None:
    add("good/1")
    path = add(
        "strict/1", lambda values: values["models"][0]["tolerance"].update(max_abs_difference=tolerance)
    )
    regild(path, lambda arrays: arrays["outputs/logits"].__iadd__(0.0005))
    assert "differ by" in reason(tmp_path, "strict/1")


class Fake:
    """A runtime that answers like a good model and otherwise does what a test wants."""

    def __init__(self, answer: Callable[[Array], Array], output: str = "logits") -> None:
        self.batches: list[int] = []
        self._answer, self._output = answer, output

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        self.batches.append(len(inputs["images"]))
        return {self._output: self._answer(inputs["images"])}

    def close(self) -> None:
        pass


def test_every_bucket_is_run_once_before_a_model_is_ready(tmp_path: Path, add: Any) -> None:
    add("tiny/1")
    fake = Fake(bundles.logits)
    loaded(tmp_path, opener=lambda *_: fake)
    assert fake.batches == [2, 1, 2, 4, 8]  # the golden images, then the buckets


@pytest.mark.parametrize(
    ("max_batch_size", "warmed"), [(6, [1, 2, 4, 6]), (8, [1, 2, 4, 8]), (20, [1, 2, 4, 8, 20])]
)
def test_the_largest_batch_is_warmed_and_no_bucket_beyond_it(
    tmp_path: Path, add: Any, max_batch_size: int, warmed: list[int]
) -> None:
    add("tiny/1")
    fake = Fake(bundles.logits)
    Repository(tmp_path, lambda *_: fake, 1, max_batch_size=max_batch_size).load_all()
    assert fake.batches == [2, *warmed]


def only_two(images: Array) -> Array:
    if len(images) != 2:
        raise RuntimeError("the batch is\nbaked in")
    return bundles.logits(images)


FAILING: dict[str, tuple[Fake, str]] = {
    "a baked in batch": (Fake(only_two), "fails on 1 inputs (RuntimeError: the batch is baked in)"),
    "another output": (Fake(bundles.logits, "probabilities"), "fails on 2 inputs (KeyError: 'logits')"),
    "fewer rows": (Fake(lambda images: bundles.logits(images)[:1]), "differ by inf"),
    "NaN": (Fake(lambda images: bundles.logits(images) * np.float32(np.nan)), "differ by nan"),
}


@pytest.mark.parametrize("case", FAILING)
def test_a_model_whose_engine_fails_is_unavailable_and_stops_no_other(
    tmp_path: Path, add: Any, case: str
) -> None:
    add("good/1")
    add("bad/1")
    fake, named = FAILING[case]

    def opener(path: Path, runtime: str, threads: int) -> Runtime:
        return fake if "bad" in path.parts else open_runtime(path, runtime, threads)

    assert named in reason(tmp_path, "bad/1", opener=opener)


def test_a_failure_of_the_system_while_a_model_is_opened_stops_no_other(tmp_path: Path, add: Any) -> None:
    add("good/1")
    add("bad/1")

    def opener(path: Path, runtime: str, threads: int) -> Runtime:
        if "bad" in path.parts:
            raise OSError(12, "Cannot allocate memory")
        return open_runtime(path, runtime, threads)

    assert "Cannot allocate memory" in reason(tmp_path, "bad/1", opener=opener)


def test_another_first_label_is_refused_even_where_the_difference_is_allowed(
    tmp_path: Path, add: Any
) -> None:
    add("good/1")

    def loosen(values: dict[str, Any]) -> None:
        values["models"][0]["tolerance"] = {"max_abs_difference": 1000, "min_top1_agreement": 0.6}

    def flip(arrays: dict[str, Array]) -> None:
        logits = arrays["outputs/logits"]
        logits[0, logits[0].argmin()] = logits[0].max() + 1

    add("loose/1", loosen)
    regild(add("other/1", loosen), flip)
    repository = loaded(tmp_path)
    assert repository.versions("loose") == ["1"]
    [entry] = [entry for entry in repository.index() if entry.name == "other"]
    assert (
        "gives the golden first label for 50.0% of the golden inputs, at least 60.0% is asked" in entry.reason
    )


def test_where_the_system_does_not_name_its_features_the_golden_answers_decide(
    tmp_path: Path, add: Any, cpu: Any, caplog: pytest.LogCaptureFixture
) -> None:
    cpu("processor\t: 0\n")
    caplog.set_level(logging.WARNING)
    add("fast/1", require("avx512_vnni"))
    assert loaded(tmp_path).get("fast")
    assert "its golden answers decide" in caplog.text


def test_a_graph_with_other_names_than_its_manifest_stops_no_other(tmp_path: Path, add: Any) -> None:
    add("good/1")
    path = add("bad/1", lambda values: values["inputs"][0].update(name="pixels"))
    regild(path, lambda arrays: arrays.update({"inputs/pixels": arrays.pop("inputs/images")}))
    assert "its model fails on 2 inputs" in reason(tmp_path, "bad/1")


def two_inputs(values: dict[str, Any]) -> None:
    values["inputs"].append({**values["inputs"][0]})


MANIFESTS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no inputs": (lambda values: values.pop("inputs"), "has no inputs"),
    "no outputs": (lambda values: values.pop("outputs"), "has no outputs"),
    "no models": (lambda values: values.pop("models"), "has no models"),
    "two inputs": (two_inputs, "models of one input and one output are served"),
    "unknown runtime": (lambda values: values["models"][0].update(runtime="tpu"), "unknown runtime 'tpu'"),
    "an image size of its own": (lambda values: values["preprocessing"].update(width=4), "makes [8, 4, 1]"),
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_a_manifest_that_cannot_be_served_stops_no_other(tmp_path: Path, add: Any, case: str) -> None:
    add("good/1")
    change, named = MANIFESTS[case]
    add("bad/1", change)
    assert named in reason(tmp_path, "bad/1")


def test_a_model_file_that_no_engine_can_read_stops_no_other(tmp_path: Path, add: Any) -> None:
    add("good/1")
    path = add("bad/1")
    (path / "model.onnx").write_bytes(b"no model")
    digest = bundle_module._digest(b"no model")
    rewrite_manifest(path, lambda values: values["digests"].update({"model.onnx": digest}))
    assert "cannot be loaded by ONNX Runtime" in reason(tmp_path, "bad/1")


def require(*features: str) -> Callable[[dict[str, Any]], Any]:
    return lambda values: values["models"][0].update(required_cpu_features=features)


@pytest.fixture
def cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Gives this machine the processor that a text of /proc/cpuinfo describes."""
    whole = Path.read_text

    def describe(text: str) -> None:
        def read(self: Path, *arguments: Any, **named: Any) -> str:
            return text if str(self) == "/proc/cpuinfo" else whole(self, *arguments, **named)

        monkeypatch.setattr(Path, "read_text", read)
        monkeypatch.setattr(Path, "is_file", lambda self: str(self) == "/proc/cpuinfo" or self.exists())

    return describe


X86 = "processor\t: 0\nflags\t\t: fpu sse2 avx2 avx_vnni\nprocessor\t: 1\nflags\t\t: fpu sse2 avx2 avx_vnni\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd asimddp\n"


def test_a_processor_without_the_required_features_refuses_the_bundle(
    tmp_path: Path, add: Any, cpu: Any
) -> None:
    cpu(X86)
    add("good/1")
    add("fast/1", require("avx512_vnni", "amx_int8"))
    assert "needs a CPU with one of avx512_vnni, amx_int8, which this one lacks; serve fp32" in reason(
        tmp_path, "fast/1"
    )


@pytest.mark.parametrize(("text", "feature"), [(X86, "avx_vnni"), (ARM, "asimddp")])
def test_one_of_the_required_features_is_enough(
    tmp_path: Path, add: Any, cpu: Any, text: str, feature: str
) -> None:
    cpu(text)
    add("fast/1", require("avx512_vnni", feature))
    assert loaded(tmp_path).get("fast")


def test_a_feature_is_a_whole_word(tmp_path: Path, add: Any, cpu: Any) -> None:
    cpu(X86)
    add("good/1")
    add("fast/1", require("avx"))
    assert "needs a CPU with one of avx," in reason(tmp_path, "fast/1")


def test_the_first_precision_is_served_unless_another_is_asked_for(tmp_path: Path, add: Any) -> None:
    add("tiny/1")
    images = bundles.images(2)
    for asked, served, shift in (
        ("", "fp32", 0.0),
        ("fp32", "fp32", 0.0),
        ("int8", "int8", bundles.INT8_SHIFT),
    ):
        model = loaded(tmp_path, asked).get("tiny")
        assert model.precision == served
        np.testing.assert_allclose(model.run(images), bundles.logits(images) + shift, atol=1e-4)


def test_the_tolerance_is_that_of_the_file_that_is_served(tmp_path: Path, add: Any) -> None:
    add("tiny/1", lambda values: values["models"][1]["tolerance"].update(max_abs_difference=0.01))
    assert loaded(tmp_path, "fp32").get("tiny")
    with pytest.raises(UserError, match=r"differ by 0\.25, allowed is 0\.01"):
        loaded(tmp_path, "int8")


def test_a_bundle_without_the_asked_precision_is_unavailable(tmp_path: Path, add: Any) -> None:
    add("good/1")
    path = add("exact/1", lambda values: (values["models"].pop(), values["digests"].pop("model.int8.onnx")))
    (path / "model.int8.onnx").unlink()
    assert "has no int8 file; it has fp32" in reason(tmp_path, "exact/1", precision="int8")


def test_the_runtime_is_opened_with_the_threads_it_was_told(tmp_path: Path, add: Any) -> None:
    path = add("tiny/1")
    opened: list[tuple[Path, str, int]] = []

    def opener(*arguments: Any) -> Runtime:
        opened.append(arguments)
        return Fake(bundles.logits)

    Repository(tmp_path, opener, 3).load_all()
    assert opened == [(path / "model.onnx", "onnxruntime", 3)]


def test_the_repository_knows_neither_grpc_nor_an_engine() -> None:
    assert {"grpc", "onnxruntime"}.isdisjoint(vars(module))


def test_a_folder_too_deep_is_refused_with_the_one_to_give(tmp_path: Path, add: Any) -> None:
    add("a/1")
    for inside, above in (("a", "the folder above"), ("a/1", "the folder two above")):
        with pytest.raises(UserError, match=f"itself: give {above}, {re.escape(str(tmp_path))}$"):
            loaded(tmp_path / inside)
