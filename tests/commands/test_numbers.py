"""A law over every number that any command takes: whatever is given, it ends soon, in one line, without a traceback."""

import argparse
import os
import re
import resource
import signal
import sys
from collections.abc import Generator
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any, get_type_hints

import pytest

from lssgen.choices import flags_of
from lssgen.commands import COMMANDS
from lssgen.commands import build as build_module
from lssgen.commands import train_upsampler as train_module
from lssgen.commands.bench import measuring as measuring_module
from lssgen.commands.parser import Parser
from lssgen.engines.demand import Demand
from lssgen.engines.registry import ENGINES, open_backend, options_class
from lssgen.errors import BackendError, BuildError, ExportError, LssgenError, PlanError
from lssgen.export.config import ExportConfig
from lssgen.plan import PlanOptions
from lssgen.plan.options import SkipLayerGuidance
from lssgen.runtime.options import Request
from lssgen.serving.http import host as host_module

NASTY = (
    "nan", "-nan", "inf", "-inf", "-1", "-0", "0", "1e-320", "-1e-320", "1e-6", "0.5", "1", "7", " 7 ", "1_0", "1e5",
    "1e12", "1e308", "-1e308", "1e400", "1000000000000", str(2**31), str(2**63), str(2**64), str(-(2**63)), "9" * 5000,
    "0x10", "", ",", "1,", "nan,1", "1,1e400", "\u0663", "1x1000000000000", "0x0", "65536x65536",
)  # fmt: skip
SECONDS, BYTES = 600, 3 * 2**30


def parser_of(command: str) -> Parser:
    return import_module(f"lssgen.commands.{command.replace('-', '_')}").build_parser()


def is_number(action: argparse.Action) -> bool:
    """Whether an option reads numbers, or several of them."""
    if not callable(action.type):
        return False
    try:
        value: Any = action.type("1")
    except argparse.ArgumentTypeError:
        return False
    values = value if isinstance(value, tuple) else (value,)
    return all(isinstance(one, int | float | tuple) for one in values)


OPTIONS = [
    (command, action.option_strings[0])
    for command in COMMANDS
    for action in parser_of(command)._actions
    if action.option_strings and is_number(action)
]


@pytest.fixture
def lines(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """A command line of every command that does all but what takes long."""
    toy: Path = request.getfixturevalue("toy")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LSSGEN_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(build_module, "build", lambda *_: None)
    monkeypatch.setattr(train_module, "_train", lambda *_: None)
    monkeypatch.setattr(host_module, "serve", lambda *_, **__: None)
    monkeypatch.setattr(measuring_module, "measure_all", lambda *_, **__: iter(()))
    return {
        "run": ["a", "--bundle", str(toy), "--scaling-space", "latent", "--quiet"],
        "encode": ["a", "--bundle", str(toy), "-o", str(tmp_path / "a.safetensors")],
        "plan": [],
        "build": [str(toy)],
        "calibrate": ["quantise", str(toy), "--verify=never"],
        "export": ["--model", "demo", "--output", str(tmp_path / "b")],
        "bench": [str(toy), "--quiet"],
        "serve": [str(toy)],
        "export-triton": [str(toy), "--output", str(tmp_path / "models")],
        "train-upsampler": ["--vae", "v", "--images", "i"],
    }


@pytest.fixture
def bounds() -> Generator[None]:
    """Bounds of time and memory for what goes on in this process."""

    def late(number: int, frame: FrameType | None) -> None:
        del number, frame
        raise AssertionError(f"still at it after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * os.sysconf("SC_PAGE_SIZE") + BYTES, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(command: str, words: list[str]) -> int | str | None:
    try:
        return import_module(f"lssgen.commands.{command.replace('-', '_')}").main(words)
    except SystemExit as end:
        return end.code


@pytest.mark.parametrize(("command", "flag"), OPTIONS, ids=lambda value: value)
def test_any_number_ends_soon_and_in_one_line(
    command: str,
    flag: str,
    lines: dict[str, list[str]],
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if command == "export":
        maker = import_module("lssgen.export.export")
        monkeypatch.setattr(maker, "export", lambda config, **_: argparse.Namespace(folder=maker.design(config)))
    line = lines[command]
    if command in ("build", "export") and flag not in ("--prune", "--threads"):
        line = [*line, "--engine", "tensorrt-rtx"]
    if command in ("run", "encode") and flag not in ("--threads",) and "only with" in help_of(command, flag):
        line = [*line, "--engine", "tensorrt-rtx" if "tensorrt-rtx" in help_of(command, flag) else "onnxruntime-cuda"]
    request.getfixturevalue("bounds")
    for value in NASTY:
        status = outcome(command, [*line, f"{flag}={value}"])
        said = capsys.readouterr().err.splitlines()
        refusals = [words for words in said if "warning:" not in words]
        assert status in (0, 1, 2), value
        assert len(refusals) == (status != 0), f"{value}: {said}"
        assert all(len(words) < 400 for words in refusals), f"{value}: {said}"


def help_of(command: str, flag: str) -> str:
    return next(action.help or "" for action in parser_of(command)._actions if flag in action.option_strings)


RECORDS: dict[type, tuple[dict[str, Any], type[LssgenError]]] = {
    **{options_class(name): ({}, BackendError) for name in ENGINES},
    Demand: ({}, BuildError),
    ExportConfig: ({"model": "demo", "output": Path("b")}, ExportError),
    SkipLayerGuidance: ({}, PlanError),
    PlanOptions: (
        {
            "height": 64, "width": 64, "num_inference_steps": 4, "guidance_scale": 2.0, "start_sigma": 0.75,
            "min_resolution": 32, "shorten": False, "base_height": 64, "base_width": 64, "scaling_space": "latent",
        },
        PlanError,
    ),
    Request: ({"plan": None, "plan_options": None}, PlanError),
}  # fmt: skip
WRONG = ("5", None, float("nan"), float("inf"), -(10**30), 10**400, True, object())


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__name__)
def test_python_refuses_the_same_numbers_in_words(record: type) -> None:
    fixed, error = RECORDS[record]
    record(**fixed)
    refused = 0
    hints = {name: str(hint) for name, hint in get_type_hints(record).items() if name in flags_of(record)}
    for name, hint in hints.items():
        for value in WRONG:
            if not re.search(r"\b(int|float)\b", hint) or (value is None and "None" in hint):
                continue
            given: Any = value
            if "tuple" in hint:
                given = ((value, 64),) if hint.count("tuple") > 1 else (value, 64)
            with pytest.raises(error, match=f"(?s){name}.*must "):
                record(**{**fixed, name: given})
            refused += 1
    assert refused


@pytest.mark.parametrize("name", ["onnxruntime"])
def test_threads_beyond_the_machine_are_cut_with_a_word(name: str, caplog: pytest.LogCaptureFixture) -> None:
    backend = open_backend(name, threads=99999)
    assert backend.describe()["threads"] == len(os.sched_getaffinity(0))
    assert "99999 threads are asked for, but this machine has" in caplog.text
