"""The part of the double that exchanges an engine's weights. It can fail in the ways that the real one is known for."""

from typing import Any

import onnx
import onnxruntime as ort
from cuda_double import RuleBrokenError


def session_of(said: dict[str, Any]) -> ort.InferenceSession:
    """What computes for a plan: its graph, some weights of which may be zero."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    source: Any = said["onnx"]
    if said["zero"]:
        model = onnx.load(source)
        for tensor in model.graph.initializer:
            if tensor.name in said["zero"]:
                tensor.raw_data = bytes(len(tensor.raw_data))
        source = model.SerializeToString()
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


class Refitter:
    """Weights are those in files beside the graph; what may go wrong in the real one is told in the fields."""

    _keeps: tuple[str, ...] = ()
    """Weights that cannot be exchanged."""
    _needs: tuple[str, ...] = ()
    """Weights that it says are missing."""
    _loses: tuple[str, ...] = ()
    """Weights that are zero afterwards."""
    _forgets = False
    """Whether it says that weights were exchanged, and leaves the old ones."""

    def __init__(self, engine: Any, logger: Any) -> None:
        if not engine.refittable:
            raise RuleBrokenError("a refitter for an engine that is not refittable")
        if engine._contexts:
            raise RuleBrokenError("refitted while a context exists")  # allowed, but we never should
        self._engine = engine
        self._logger = logger
        self._given = ""

    def get_all_weights(self) -> list[str]:
        return [name for name in outside(self._engine._plan["onnx"]) if name not in self._keeps]

    def get_missing_weights(self) -> list[str]:
        return list(self._needs)

    def refit_cuda_engine(self) -> bool:
        if self._needs or not self._given:
            return False
        if self._engine._cuda.busy:
            raise RuleBrokenError("refitted with work in flight")
        if not self._forgets:
            self._engine._plan |= {"onnx": self._given, "zero": list(self._loses)}
        return True


class OnnxParserRefitter:
    def __init__(self, refitter: Refitter, logger: Any) -> None:
        self._refitter = refitter
        self._logger = logger

    @property
    def num_errors(self) -> int:
        return 0

    def refit_from_file(self, model: str) -> bool:
        if not set(self._refitter.get_all_weights()) <= outside(model):
            return False
        self._refitter._given = model
        return True


def outside(path: str) -> set[str]:
    """Names of the weights in files beside a graph."""
    return {t.name for t in onnx.load(path, load_external_data=False).graph.initializer if t.external_data}
