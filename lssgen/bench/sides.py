"""One side of a comparison: what is run, written as text, and the process that runs it."""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from signal import Signals
from typing import Any

from lssgen.bundle import MANIFEST, sha256_of
from lssgen.engines.options import EngineOptions
from lssgen.engines.registry import default_engine
from lssgen.errors import BenchError
from lssgen.jsons import JsonError, decode_json
from lssgen.paths import find_bundle
from lssgen.runtime import Options
from lssgen.runtime.options import refuse_unknown

WORKER = Path(__file__).with_name("worker.py")

_OWN = ("engine", "code")


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """What is run.

    Attributes:
        text: Words that it was written in.
        bundle: Folder of the bundle, or name of one.
        engine: Name of the engine; empty: the one that its code takes by itself.
        code: Folder of the checkout whose `lssgen` runs; empty: this one.
        words: Options of the engine.
        options: Options of the run.
    """

    text: str
    bundle: str
    engine: str = ""
    code: str = ""
    words: Mapping[str, Any] = field(default_factory=dict[str, Any])
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])


def side_from_text(text: str, engine: str = "") -> Side:
    """A side from "BUNDLE,NAME=VALUE,...": options of the run or of the engine, `engine` and `code` among them.

    Args:
        text: As a user writes it: "bundles/sd3,engine=openvino,start_sigma=0.5".
        engine: Engine of a side that names none.

    Raises:
        BenchError: It cannot be read.
        PlanError: It has an option that does not exist.
    """
    bundle, *rest = text.split(",")
    pairs = [_pair(part) for part in rest]
    given = dict(pairs)
    if len(given) < len(pairs):
        raise BenchError(f"{text[:60]!r} says one of its options twice; say each once")
    engine, code = str(given.pop("engine", engine)), str(given.pop("code", ""))
    if not bundle:
        raise BenchError(f"{text[:60]!r} names no bundle; write BUNDLE,NAME=VALUE,... such as demo,engine=openvino")
    if code and not (Path(code) / "lssgen" / "__init__.py").is_file():
        raise BenchError(f"{code} is not a checkout of lssgen: it has no lssgen/__init__.py")
    words = {name: value for name, value in given.items() if name in EngineOptions.__annotations__}
    options = {name: value for name, value in given.items() if name not in words}
    refuse_unknown(options, (*Options.__annotations__, *EngineOptions.__annotations__, *_OWN))
    return Side(text=text, bundle=bundle, engine=engine, code=code, words=words, options=options)


def identity_of(side: Side) -> dict[str, str]:
    """What a side's text does not say and its times depend on: the bundle's manifest and the code, as hashes, "" for a
    bundle that is not there; and the engine, which the environment chooses where the text does not."""
    manifest = find_bundle(side.bundle) / MANIFEST
    code = hashlib.sha256()
    for path in sorted((_place(side) / "lssgen").rglob("*.py")):
        code.update(path.read_bytes())
    return {
        "bundle": sha256_of(manifest) if manifest.is_file() else "",
        "code": code.hexdigest(),
        "engine": side.engine or default_engine(),
    }


def _place(side: Side) -> Path:
    """Folder whose `lssgen` runs."""
    return Path(side.code).resolve() if side.code else Path(__file__).parents[2]


def value_of(text: str) -> object:
    """A number, truth or list as JSON writes it, or True, False or None as Python does; anything else is text."""
    if text in _PYTHON:
        return _PYTHON[text]
    with suppress(JsonError):
        return decode_json(text.encode(), object)
    return text


_PYTHON: Mapping[str, object] = {"True": True, "False": False, "None": None}


def _pair(text: str) -> tuple[str, object]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise BenchError(f"{text[:60]!r} is not NAME=VALUE, such as engine=openvino or start_sigma=0.5")
    return name.strip().replace("-", "_"), value_of(value)


class Painter:
    """A process that paints one side."""

    def __init__(self, side: Side, process: "subprocess.Popen[str]", said: Path) -> None:
        self._side = side
        self._process = process
        self._said = said
        opened = self._ask(do="open", bundle=side.bundle, engine=side.engine, words=dict(side.words))
        self.load_s = float(opened["load_s"])
        self.describe: Mapping[str, str] = opened["describe"]

    def paint(self, prompt: str) -> float:
        """Seconds of one run, from the prompt to its pictures.

        Raises:
            BenchError: It fails, or the process has died.
        """
        return float(self._ask(do="paint", prompt=prompt, options=dict(self._side.options))["seconds"])

    def _ask(self, **words: object) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(words) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except OSError:  # a broken pipe: it died before it was asked
            answer = ""
        if not answer:
            raise BenchError(f"the process of {self._side.text} died half-way: {self._ending()}")
        try:
            found: dict[str, Any] = json.loads(answer)
        except ValueError as error:  # it was killed while it wrote
            self._process.kill()  # nothing, if so
            raise BenchError(f"the process of {self._side.text} gave half an answer: {self._ending()}") from error
        if "error" in found:
            raise BenchError(f"{self._side.text} cannot be run: {found['error']}")
        return found

    def _ending(self) -> str:
        """How the process ended, and its last words."""
        code = self._process.wait()
        how = f"signal {Signals(-code).name}" if code < 0 else f"status {code}"
        words = self._said.read_text(errors="replace").strip().splitlines()
        said = f": {words[-1][:200]}" if words else ", without a word"
        return f"{how}{said}; run it again: with -o it goes on from the rounds in that file"


@contextmanager
def painter(side: Side) -> Generator[Painter]:
    """A fresh process for one side, ended with the block.

    Raises:
        BenchError: The bundle cannot be opened there.
    """
    path = os.pathsep.join(filter(None, (str(_place(side)), os.environ.get("PYTHONPATH"))))
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder) / "stderr"
        with said.open("w") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-P", str(WORKER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env={**os.environ, "PYTHONPATH": path},
            )
        try:
            yield Painter(side, process, said)
        finally:
            process.kill()
            process.communicate()
