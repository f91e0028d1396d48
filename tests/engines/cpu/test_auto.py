"""The engine that chooses: by measurement, once, and for each component."""

import logging
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from shutil import copytree
from time import sleep
from typing import Any

import numpy as np
import pytest

from lssgen.bundle import Bundle, read_bundle
from lssgen.commands.bench import main
from lssgen.engines.cpu import auto
from lssgen.engines.cpu.auto import AutoBackend
from lssgen.engines.cpu.choice import CLEARLY, Choice, SizeChoice, Trial, _note, chosen, measuring, recalled, remembered
from lssgen.engines.demand import Demand, profiles_of
from lssgen.engines.onnxruntime import OrtBackend
from lssgen.engines.options import OrtOptions
from lssgen.engines.registry import open_backend
from lssgen.errors import BackendError, ShapeError
from lssgen.measured import place_of
from lssgen.parity.samples import shape_of
from lssgen.runtime import Pipeline
from lssgen.testing import FakeBuffer

ONE = OrtOptions(threads=1)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LSSGEN_HOME", str(tmp_path / "home"))


@pytest.fixture
def bundle(toy: Path) -> Bundle:
    return read_bundle(toy)


def trial(engine: str, ms: float | None, error: float = 0.0) -> Trial:
    return Trial(engine=engine, ms=ms, error=error, refused="" if ms else "no")


def only(graph: str, engine: str) -> Choice:
    return Choice(graph=graph, sizes=(SizeChoice(size_px=(0, 0), engine=engine, trials=()),))


@pytest.mark.parametrize(
    ("trials", "engine", "reason"),
    [
        ([trial("a", 10), trial("b", 5, 1e-3)], "b", "2.00 times as fast as the next"),
        ([trial("a", 10), trial("b", 10 / (CLEARLY - 0.01))], "a", "as fast as the others"),
        ([trial("a", 10), trial("b", 1, 0.5)], "a", "the only one that runs it within the bound"),
        ([trial("a", None), trial("b", 50)], "b", "the only one that runs it within the bound"),
    ],
)
def test_the_fastest_that_is_right_is_chosen_and_says_why(trials: list[Trial], engine: str, reason: str) -> None:
    (found,) = chosen("step", [((64, 64), trials)]).sizes
    assert found.engine == engine
    assert reason in found.reason


def test_no_size_is_given_an_engine_that_is_slower_there_than_the_reference() -> None:
    """Each size its own; where there is a draw, the engine of the largest size, so that one is loaded."""
    found = chosen(
        "step",
        [
            ((32, 32), [trial("reference", 1), trial("compiled", 3)]),
            ((64, 64), [trial("reference", 5), trial("compiled", 5)]),
            ((128, 128), [trial("reference", 20), trial("compiled", 10)]),
        ],
    )
    assert [one.engine for one in found.sizes] == ["reference", "compiled", "compiled"]
    assert str(found) == "reference at 32x32, compiled at 64x64, compiled at 128x128"
    assert [found.engine_at(size) for size in ((16, 16), (32, 40), (60, 64), (500, 500), None)] == [
        "reference", "reference", "compiled", "compiled", "compiled",
    ]  # fmt: skip
    once = found.alike()
    assert once.engines == ("compiled",)
    assert "so that its weights are in memory once" in once.sizes[0].reason


def test_one_engine_for_all_sizes_is_one_that_is_right_at_all_of_them() -> None:
    small, large = [trial("a", 2), trial("b", 1, 0.5)], [trial("a", 20), trial("b", 10)]
    found = chosen("step", [((32, 32), small), ((64, 64), large)])
    assert found.engines == ("b", "a")
    assert found.alike().engines == ("a",)


def test_where_none_runs_it_all_say_why() -> None:
    with pytest.raises(BackendError, match="no engine of the CPU runs step: a cannot run it: no; b"):
        chosen("step", [((64, 64), [trial("a", None), trial("b", 1, 0.9)])])


def test_a_component_runs_at_each_size_where_it_was_chosen_to(bundle: Bundle) -> None:
    backend = AutoBackend(ONE)
    sizes = ((32, "openvino"), (64, "onnxruntime"))
    step = Choice(
        graph="step", sizes=tuple(SizeChoice(size_px=(px, px), engine=engine, trials=()) for px, engine in sizes)
    )
    backend.chosen(bundle).update(
        {graph: only(graph, "onnxruntime") for graph in bundle.manifest.graphs} | {"step": step}
    )
    ran: list[str] = []
    engine = backend.open(bundle, Demand())["step"]
    for name, inner in engine.engines.items():
        inner.bind = lambda _, name=name: ran.append(name)  # type: ignore[method-assign,misc]
    for px in (32, 64):
        (profile,) = profiles_of(bundle.manifest, Demand(graphs=("step",), resolutions=((px, px),)))["step"]
        axes = {axis: extent.best for axis, extent in profile.axes.items()}
        ports = (*engine.inputs, *engine.outputs)
        engine.bind({port.name: backend.empty(shape_of(port, axes), port.dtype) for port in ports})
    assert ran == ["openvino", "onnxruntime"]
    assert backend.describe()["components"]["step"] == "openvino at 32x32, onnxruntime at 64x64"  # type: ignore[index]


def test_it_measures_once_and_remembers(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    with Pipeline(bundle, AutoBackend(ONE)) as pipeline:
        first = pipeline("a red circle", scaling_space="latent").latents
    monkeypatch.setattr(auto, "trials_of", lambda *_: pytest.fail("it was measured again"))
    with Pipeline(bundle, AutoBackend(ONE)) as pipeline:
        np.testing.assert_array_equal(pipeline("a red circle", scaling_space="latent").latents, first)
    with pytest.raises(pytest.fail.Exception):  # another number of threads is another machine
        AutoBackend(OrtOptions(threads=0)).choice(bundle, "step")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        '{"graph":"step","sizes":[]}',
        '{"graph":"text","sizes":[{"size_px":[0,0],"engine":"onnxruntime","trials":[]}]}',
        '{"graph":"step","sizes":[{"size_px":[32,32],"engine":"abacus","trials":[]}]}',
    ],
)
def test_a_note_that_cannot_be_true_is_none_and_is_measured_again(
    bundle: Bundle, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("onnxruntime", "openvino")
    note = _note(bundle, "step", 1, names)
    note.parent.mkdir(parents=True)
    note.write_text(text)
    monkeypatch.setattr(auto, "trials_of", lambda *_: [((32, 32), [trial("onnxruntime", 1)])])
    assert AutoBackend(ONE).choice(bundle, "step").engines == ("onnxruntime",)
    assert recalled(bundle, "step", 1, names) is not None


def test_a_process_waits_for_another_that_measures_and_takes_what_it_found(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def found(*_: object) -> list[tuple[tuple[int, int], list[Trial]]]:
        return [((32, 32), [trial("onnxruntime", 1)])]

    monkeypatch.setattr(auto, "trials_of", found)
    with ThreadPoolExecutor(1) as pool, caplog.at_level(logging.INFO, "lssgen"):
        with measuring(pytest.fail):
            waiting = pool.submit(AutoBackend(ONE).choice, bundle, "step")
            while "another process measures engines; waiting for it" not in caplog.text:
                sleep(0.01)
            assert not waiting.done()
            remembered(bundle, 1, ("onnxruntime", "openvino"), only("step", "openvino"), pytest.fail)
            monkeypatch.setattr(auto, "trials_of", lambda *_: pytest.fail("it was measured again"))
        assert waiting.result(10).engines == ("openvino",)


def test_a_home_that_cannot_be_written_is_told_once(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LSSGEN_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(auto, "trials_of", lambda *_: [((32, 32), [trial("onnxruntime", 1)])])
    backend = AutoBackend(ONE)
    with caplog.at_level(logging.WARNING, "lssgen"):
        assert [backend.choice(bundle, graph).engines for graph in ("step", "text")] == [("onnxruntime",)] * 2
    (record,) = caplog.records
    assert "(Not a directory), so every start measures again; let LSSGEN_HOME name a folder" in record.getMessage()


def test_low_memory_is_another_place_for_what_is_measured() -> None:
    """It runs one engine at all sizes, and loads graphs in turn."""
    plain, low = (place_of("auto", AutoBackend(OrtOptions(low_memory=low)).describe()) for low in (False, True))
    assert plain != low
    assert "low_memory True" in low


@pytest.mark.parametrize("mixed", [("onnxruntime", "openvino"), ("openvino", "onnxruntime")])
def test_components_of_one_run_may_be_computed_by_different_engines(bundle: Bundle, mixed: tuple[str, str]) -> None:
    with Pipeline(bundle, OrtBackend(ONE)) as pipeline:
        wanted = pipeline("a red circle", scaling_space="latent").latents
    backend = AutoBackend(ONE)
    backend.chosen(bundle).update({graph: only(graph, mixed[graph == "step"]) for graph in bundle.manifest.graphs})
    with Pipeline(bundle, backend) as pipeline:
        got = pipeline("a red circle", scaling_space="latent").latents
    # The step in bfloat16, where it is OpenVINO's: 8 bits of mantissa, six steps.
    assert np.linalg.norm(got - wanted) <= 0.05 * np.linalg.norm(wanted)
    assert set(backend.describe()["engines"]) == set(mixed)  # type: ignore[call-overload]


def test_every_bundle_has_a_choice_of_its_own(bundle: Bundle, tmp_path: Path) -> None:
    other = read_bundle(copytree(bundle.folder, tmp_path / "other"))
    backend = AutoBackend(ONE)
    for one, engine in ((bundle, "openvino"), (other, "onnxruntime")):
        backend.chosen(one).update({graph: only(graph, engine) for graph in one.manifest.graphs})
    engines = [backend.open(one, Demand(graphs=("text",)))["text"] for one in (bundle, other)]
    assert [type(next(iter(engine.engines.values()))).__name__ for engine in engines] == ["OvEngine", "OrtEngine"]


def test_buffers_are_its_own(bundle: Bundle) -> None:
    backend = AutoBackend(ONE)
    backend.chosen(bundle)["text"] = only("text", "onnxruntime")
    engine = backend.open(bundle, Demand(graphs=("text",)))["text"]
    with pytest.raises(ShapeError, match='engine "auto" binds its own buffers'):
        engine.bind({"ids": FakeBuffer((1, 8), np.int64), "text": FakeBuffer((1, 1), np.float32)})
    with pytest.raises(ShapeError, match="was given an array of shape"):
        backend.empty((1,), np.float32).write(np.zeros(2))


def test_where_onnx_runtime_is_alone_auto_is_that_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "find_spec", lambda name: None if name == "openvino" else name)
    assert open_backend("auto", threads=1).name == "onnxruntime"


def test_explain_tells_engine_reason_and_trials(toy: Path, capsys: pytest.CaptureFixture[str], bundle: Bundle) -> None:
    assert main(["explain", str(toy), "--threads", "1"]) == 0
    out = capsys.readouterr().out
    for graph in bundle.manifest.graphs:
        assert f"{graph}: " in out
        assert recalled(bundle, graph, 1, auto.candidates()) is not None
    assert " ms, 0.0e+00 from float32" in out
    assert main(["explain", str(toy), "--threads", "1", "--again"]) == 0


def test_importing_it_needs_no_openvino() -> None:
    module: Any = import_module("lssgen.engines.cpu.auto")
    assert "openvino" not in vars(module)
