import subprocess
import sys
from dataclasses import fields

import pytest

from lssgen.engines.options import EngineOptions
from lssgen.engines.registry import ENGINES, default_engine, open_backend, options_class
from lssgen.errors import BackendError


def test_an_unknown_engine_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        BackendError, match="no engine called 'cuda'; choose one of onnxruntime, openvino, auto, onnxruntime-cuda"
    ):
        open_backend("cuda")


def test_a_missing_library_is_refused_with_the_extra_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    for module in ("lssgen.engines.onnxruntime", "lssgen.ort"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(BackendError, match=r'needs onnxruntime; install it with pip install "lssgen\[onnxruntime\]"'):
        open_backend("onnxruntime")


def test_the_embedded_engine_opens_with_its_threads() -> None:
    assert open_backend("onnxruntime", threads=2).describe()["threads"] == 2


def test_the_default_is_the_users_or_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LSSGEN_ENGINE", "tensorrt")
    assert default_engine() == "tensorrt"
    monkeypatch.delenv("LSSGEN_ENGINE")
    assert default_engine() == "auto"


def test_every_engine_names_an_extra() -> None:
    assert set(ENGINES) == {"onnxruntime", "openvino", "auto", "onnxruntime-cuda", "tensorrt", "tensorrt-rtx"}
    assert all(place.extra for place in ENGINES.values())


def test_an_option_that_an_engine_does_not_have_is_refused_with_those_it_has() -> None:
    with pytest.raises(BackendError, match=r"engine 'onnxruntime' has no option 'refit'; it has threads, low_memory"):
        open_backend("onnxruntime", refit=True)
    with pytest.raises(BackendError, match="has no option 'thread'; did you mean 'threads'"):
        open_backend("onnxruntime", thread=1)  # type: ignore[call-arg]


@pytest.mark.parametrize("name", ENGINES)
def test_every_word_of_an_engines_options_is_a_word_of_engine_options(name: str) -> None:
    assert {one.name for one in fields(options_class(name))} <= set(EngineOptions.__annotations__)


def test_every_word_of_engine_options_is_an_option_of_some_engine() -> None:
    known = {one.name for name in ENGINES for one in fields(options_class(name))}
    assert set(EngineOptions.__annotations__) == known


def test_the_options_of_every_engine_need_no_library() -> None:
    code = (
        "import sys\nfrom lssgen.engines.registry import ENGINES, options_class\n"
        "for name in ENGINES: options_class(name)()\n"
        "libraries = ('onnxruntime', 'openvino', 'tensorrt', 'tensorrt_rtx', 'cuda', 'onnx')\n"
        "print([m for m in libraries if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_plain_start_of_onnx_runtime_imports_nothing_of_tensorrt() -> None:
    code = (
        "import sys\nfrom lssgen.engines.registry import open_backend\nopen_backend('onnxruntime')\n"
        "rooms = ('lssgen.engines.trt', 'lssgen.engines.cuda', 'lssgen.parity')\n"
        "print([m for m in sys.modules if m.startswith(rooms)])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
