"""The runtime paints where torch, diffusers, transformers and onnx cannot be imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lssgen.bundle import read_bundle

REFUSE = """
import sys

FORBIDDEN = {"torch", "diffusers", "transformers", "onnx", "onnxscript", "onnx_ir", "accelerate"}


class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in FORBIDDEN:
            raise AssertionError(f"the runtime imported {name}")


sys.meta_path.insert(0, Refuse())
"""
RUN = f"""{REFUSE}
from lssgen.commands.run import main

status = main(["a red circle", *sys.argv[1:], "--scaling-space", "latent", "--threads", "1", "--quiet"])
assert not FORBIDDEN & {{name.partition(".")[0] for name in sys.modules}}
sys.exit(status)
"""
EXAMPLE = f"""{REFUSE}
import runpy

sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
DEMO = Path(__file__).parents[2] / "examples" / "demo.py"


def _python(code: str, *words: str | Path, home: Path) -> subprocess.CompletedProcess[str]:
    command, environment = [sys.executable, "-c", code, *map(str, words)], {**os.environ, "LSSGEN_HOME": str(home)}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_lssgen_run_paints_where_torch_cannot_be_imported(toy: Path, tmp_path: Path) -> None:
    done = _python(RUN, "--bundle", toy, "-o", tmp_path / "picture.png", home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "picture.png").exists()


def test_the_first_run_of_a_new_user_paints_where_torch_cannot_be_imported(tmp_path: Path) -> None:
    done = _python(RUN, "--steps", "2", "-o", tmp_path / "picture.png", home=tmp_path / "home")
    assert done.returncode == 0, done.stderr
    assert "making the demo model's bundle" in done.stderr
    assert (tmp_path / "picture.png").exists()
    assert read_bundle(tmp_path / "home" / "bundles" / "demo").manifest.facts.name == "demo"


@pytest.mark.slow  # eight pictures
def test_the_demo_paints_what_it_was_told_where_torch_cannot_be_imported(tmp_path: Path) -> None:
    done = _python(EXAMPLE, DEMO, "--outdir", tmp_path / "out", home=tmp_path / "home")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("wholly right") == 2
    assert sorted(path.suffix for path in (tmp_path / "out").iterdir()) == [".png", ".png"]


def test_importing_lssgen_imports_nothing_of_weight() -> None:
    code = "import sys, lssgen; print([m for m in ('numpy', 'msgspec', 'PIL', 'onnxruntime') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
