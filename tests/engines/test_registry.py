import sys

import pytest

from lssgen.engines.options import EngineOptions
from lssgen.engines.registry import ENGINES, open_backend
from lssgen.errors import BackendError


def test_an_unknown_engine_is_refused_with_the_known_ones() -> None:
    with pytest.raises(BackendError, match="no engine called 'cuda'; choose one of onnxruntime, onnxruntime-cuda"):
        open_backend("cuda", EngineOptions())


def test_a_missing_library_is_refused_with_the_extra_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.delitem(sys.modules, "lssgen.engines.onnxruntime", raising=False)
    with pytest.raises(BackendError, match=r'needs onnxruntime; install it with pip install "lssgen\[onnxruntime\]"'):
        open_backend("onnxruntime", EngineOptions())


def test_the_embedded_engine_opens_with_its_threads() -> None:
    assert open_backend("onnxruntime", EngineOptions(threads=2)).describe()["threads"] == 2


def test_every_engine_names_an_extra() -> None:
    assert set(ENGINES) == {"onnxruntime", "onnxruntime-cuda", "tensorrt", "tensorrt-rtx"}
    assert all(place.extra for place in ENGINES.values())
