"""The runtime paints where torch, diffusers, transformers and onnx cannot be imported."""

import subprocess
import sys
from pathlib import Path

PAINT = """
import sys

FORBIDDEN = {"torch", "diffusers", "transformers", "onnx", "onnxscript", "onnx_ir", "accelerate"}


class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in FORBIDDEN:
            raise AssertionError(f"the runtime imported {name}")


sys.meta_path.insert(0, Refuse())
from lssgen.commands.run import main

status = main([
    "a red circle", "--bundle", sys.argv[1], "-o", sys.argv[2], "--scaling-space", "latent", "--threads", "1", "--quiet"
])
assert not FORBIDDEN & {name.partition(".")[0] for name in sys.modules}
sys.exit(status)
"""


def test_lssgen_run_paints_where_torch_cannot_be_imported(toy: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", PAINT, str(toy), str(tmp_path / "picture.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "picture.png").exists()


def test_importing_lssgen_imports_nothing_of_weight() -> None:
    code = "import sys, lssgen; print([m for m in ('numpy', 'msgspec', 'PIL', 'onnxruntime') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
