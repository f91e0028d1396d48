"""lssgen-run's flags for engines reach them."""

import json
from pathlib import Path
from typing import Any

import pytest

from lssgen.commands import run as run_module
from lssgen.commands.run import main
from lssgen.engines.demand import Demand
from lssgen.engines.options import EngineOptions
from lssgen.engines.trt.compiler import BuildOptions
from lssgen.engines.trt.report import Bounds
from lssgen.errors import BackendError


@pytest.fixture
def asked(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the command up to where its engine is opened; returns what that is asked for."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LSSGEN_HOME", str(tmp_path))
    found: list[tuple[str, EngineOptions]] = []

    def stop(*given: Any) -> Any:
        found.append(given)
        raise BackendError("seen")

    monkeypatch.setattr(run_module, "open_backend", stop)

    def call(*flags: str) -> tuple[str, EngineOptions]:
        assert main([*flags, "--bundle", str(toy), "--scaling-space", "latent"]) == 1
        return found[-1]

    return call


def test_without_flags_everything_is_the_default(asked: Any, tmp_path: Path) -> None:
    engine, options = asked("a star")
    assert (engine, options) == ("onnxruntime", EngineOptions())
    assert options.engines == tmp_path / "engines"


def test_every_flag_is_heard(asked: Any) -> None:
    engine, options = asked(
        "a", "b", "--engine", "tensorrt", "--threads", "3", "--device", "1", "--low-memory", "--engines", "here",
        "--tf32", "--weight-streaming", "--max-scratch", "2", "--allow-unfused", "4", "--num-images", "3",
        "--batch", "4",
    )  # fmt: skip
    assert engine == "tensorrt"
    assert options == EngineOptions(
        threads=3,
        device_id=1,
        low_memory=True,
        engines=Path("here"),
        demand=Demand(batches=(2, 4)),
        build=BuildOptions(tf32=True, weight_streaming=True),
        bounds=Bounds(activation_bytes=2 * 2**30, unfused=4),
    )


def test_a_run_in_low_memory_mode_is_on_record(toy: Path, tmp_path: Path) -> None:
    flags = ["--bundle", str(toy), "--threads", "1", "--quiet", "--scaling-space", "latent", "--low-memory"]
    assert main(["a star", *flags, "-o", str(tmp_path / "x.png")]) == 0
    assert json.loads((tmp_path / "x.run.json").read_text())["backend"]["low_memory"] is True
