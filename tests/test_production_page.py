"""docs/production.md: its commands parse, and its numbers are those that were measured."""

import json
import re
import shlex
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "production.md").read_text(encoding="utf-8")
BLOCKS = re.sub(r"\\\n", " ", "\n".join(line for line in PAGE.splitlines() if line.startswith("    ")))
LINES = [shlex.split(command) for line in BLOCKS.splitlines() for command in line.split(" && ")]
IMAGES = {line[line.index("-t") + 1]: line[line.index("-f") + 1] for line in LINES if line[:2] == ["docker", "build"]}


def _measured(name: str) -> Any:
    return json.loads((ROOT / "benchmarks" / "results" / name).read_text(encoding="utf-8"))["sd3-medium"]


@pytest.mark.parametrize("line", [line for line in LINES if line[:2] == ["docker", "run"]], ids=" ".join)
def test_what_a_container_is_told_parses(line: list[str]) -> None:
    image = next((word for word in line if word in IMAGES), None)
    if image is None:
        assert line[-1] == "nvidia-smi"
        return
    words = line[line.index(image) + 1 :]
    if "--entrypoint" in line:
        import_module("serve").build_parser().parse_args(words[1:])
    else:
        import_module(f"lssgen.commands.{words[0]}").build_parser().parse_args(words[1:])


@pytest.fixture(autouse=True)
def _examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))


def test_what_the_service_is_told_parses() -> None:
    (line,) = [line for line in LINES if line[0] == "python"]
    import_module("serve").build_parser().parse_args(line[2:])
    (asked,) = [json.loads(line[line.index("-d") + 1]) for line in LINES if line[0] == "curl"]
    assert set(asked) <= {"prompt", *import_module("serve").WORDS}


def test_the_dockerfiles_are_there() -> None:
    assert len(IMAGES) == 2
    assert all((ROOT / file).is_file() for file in IMAGES.values())


def test_the_numbers_are_those_that_were_measured() -> None:
    export, build = _measured("full_size_export.json"), _measured("full_size_build.json")
    step, text = export["step"], export["text"]
    minutes = sum(part["seconds"] + part["probe_cpu_seconds"] for part in (step, text)) / 60
    peak = max(part[kind] for part in (step, text) for kind in ("peak_gb", "probe_peak_gb"))
    loaded = build["engine_gb"] + text["data_gb"] + max(build["scratch_mb"]) / 1e3
    assert f"SD3-medium is {step['data_gb']:.1f} GB" in PAGE
    assert f"are {text['data_gb']:.1f} GB" in PAGE
    assert round(minutes) == 4, "about four minutes"
    assert f"at most {peak:.1f} GB of memory" in PAGE
    assert f"the network in {build['seconds']:.0f} seconds, with {build['peak_gb']:.1f} GB of host memory" in PAGE
    assert round(loaded) == 16, "some 16 GB"
