"""lssgen-run's flags for engines reach the chosen one, and only those that it has."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lssgen.commands import run as run_module
from lssgen.commands.run import main
from lssgen.errors import BackendError


@pytest.fixture
def asked(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the command up to where its engine is opened; returns what that is asked for."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LSSGEN_HOME", str(tmp_path))
    found: list[tuple[str, dict[str, object]]] = []

    def stop(name: str, **options: object) -> Any:
        found.append((name, options))
        raise BackendError("seen")

    monkeypatch.setattr(run_module, "open_backend", stop)

    def call(*flags: str) -> tuple[str, dict[str, object]]:
        assert main([*flags, "--bundle", str(toy), "--scaling-space", "latent"]) == 1
        return found[-1]

    return call


def test_without_flags_everything_is_the_engines_default(asked: Any) -> None:
    assert asked("a star") == ("onnxruntime", {})


def test_every_flag_is_heard(asked: Any) -> None:
    flags = "--device 1 --low-memory --engines here --tf32 --refit --weight-streaming --max-scratch 2 --allow-unfused 4"
    engine, options = asked("a", "b", "--engine", "tensorrt", *flags.split())
    assert engine == "tensorrt"
    assert options == {
        "device_id": 1,
        "low_memory": True,
        "engines": Path("here"),
        "tf32": True,
        "refit": True,
        "weight_streaming": True,
        "max_scratch": 2.0,
        "allow_unfused": 4,
    }


def test_a_run_in_low_memory_mode_is_on_record(toy: Path, tmp_path: Path) -> None:
    flags = ["--bundle", str(toy), "--threads", "1", "--quiet", "--scaling-space", "latent", "--low-memory"]
    assert main(["a star", *flags, "-o", str(tmp_path / "x.png")]) == 0
    assert json.loads((tmp_path / "x.run.json").read_text())["backend"]["low_memory"] is True


def test_a_run_on_onnx_runtime_imports_nothing_that_builds_engines(toy: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from lssgen.commands.run import main; status = main(sys.argv[1:])\n"
        "print([name for name in sys.modules if name.startswith(('lssgen.engines.trt.', 'lssgen.engines.cuda'))])\n"
        "sys.exit(status)"
    )
    flags = ["a", "--bundle", str(toy), "--threads", "1", "--scaling-space", "latent", "-o", str(tmp_path / "x.png")]
    done = subprocess.run([sys.executable, "-c", code, *flags], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "['lssgen.engines.trt.options']"
