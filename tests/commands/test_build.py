"""lssgen-build: engines where the GPU is, without torch."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lssgen.bundle import read_bundle
from lssgen.commands.build import main
from lssgen.engines.demand import Profile, fixed
from lssgen.engines.trt.cache import PLAN, REPORT, Cache
from lssgen.engines.trt.order import content_of
from lssgen.engines.trt.report import Report

FORBID = """
import sys

FORBIDDEN = {"torch", "diffusers", "transformers"}


class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in FORBIDDEN:
            raise AssertionError(f"the build imported {name}")


sys.meta_path.insert(0, Refuse())
"""


@pytest.fixture
def engines(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Puts an engine into the user's folder, without building it; returns its key."""
    import msgspec

    from lssgen.bundle import sha256_of

    monkeypatch.setenv("LSSGEN_HOME", str(tmp_path))

    def put(graph: str, *, content: str = "", backend: str = "tensorrt-rtx") -> str:
        key = f"{graph}-{backend}"
        folder = tmp_path / "engines" / key
        folder.mkdir(parents=True)
        (folder / PLAN).write_bytes(b"abc")
        report = Report(
            graph=graph, content=content or content_of(read_bundle(toy).manifest.graphs[graph]), backend=backend,
            version="1.7", targets=("sm89",), precision="fp16", options={}, profiles=(Profile({"height": fixed(64)}),),
            inputs=(), outputs=(), seconds=1.5, plan_bytes=3, plan_sha256=sha256_of(folder / PLAN), weight_bytes=10,
            activation_bytes=(20,), attentions=0,
        )  # fmt: skip
        (folder / REPORT).write_bytes(msgspec.json.encode(report))
        return key

    return put


@pytest.mark.skipif(
    subprocess.run([sys.executable, "-c", "import tensorrt_rtx"], capture_output=True, check=False).returncode != 0,
    reason="the wheel tensorrt-rtx-cu13 is not installed",
)
def test_a_bundles_engines_are_built_where_torch_cannot_be_imported(toy: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(FORBID)  # for the processes that the build starts, too
    flags = [
        str(toy),
        "--engine",
        "tensorrt-rtx",
        "--target",
        "sm89",
        "--batch",
        "1,2",
        "--engines",
        str(tmp_path / "e"),
    ]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "lssgen", "build", *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    found = {entry.report.graph: entry.report for entry in Cache(tmp_path / "e").entries()}
    assert set(found) == {"text", "step", "transition_latent", "decode", "encode"}
    assert {profile.axes["batch"].best for profile in found["step"].profiles} == {1, 2}
    assert "device memory of a run" in done.stderr


def test_the_engines_of_a_bundle_are_listed_or_all_of_them(
    engines: Callable[..., str], toy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own, other, old = engines("step"), engines("decode", content="another"), engines("text", backend="tensorrt")

    def listed(*flags: str) -> set[str]:
        assert main([*flags, "--list"]) == 0
        return {line.split()[0] for line in capsys.readouterr().out.splitlines()}

    assert listed() == {own, other, old}
    assert listed(str(toy)) == {own, old}
    assert listed(str(toy), "--engine", "tensorrt") == {old}


def test_only_the_engines_that_are_meant_are_pruned(
    engines: Callable[..., str], toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engines("step")
    other = engines("decode", content="another")
    assert main([str(toy), "--prune"]) == 0
    assert capsys.readouterr().out == "deleted 0 engines, 0.0 MB\n"
    assert main([str(toy), "--prune", "0"]) == 0
    assert capsys.readouterr().out == "deleted 1 engines, 0.0 MB\n"
    assert [entry.key for entry in Cache(tmp_path / "engines").entries()] == [other]
    assert main(["--prune", "0"]) == main(["--list"]) == 0
    assert capsys.readouterr().out.endswith(f"no engines in {tmp_path / 'engines'}\n")


def test_a_damaged_engine_is_found_by_its_hash(
    engines: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, broken = engines("step"), engines("decode")
    assert main(["--check"]) == 0
    (tmp_path / "engines" / broken / PLAN).write_bytes(b"abd")
    capsys.readouterr()
    assert main(["--check"]) == 1
    out, err = capsys.readouterr()
    assert out == f"{whole}  whole\n"
    assert err.startswith(f"lssgen-build: EngineError: {tmp_path / 'engines' / broken} is damaged")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("", "BUNDLE and --engine are needed to build, or one of --list, --check and --prune; see"),
        ("bundle", "BUNDLE and --engine are needed"),
        ("bundle --engine onnxruntime", "--engine: there is no 'onnxruntime'; choose one of tensorrt, tensorrt-rtx;"),
        ("--list --batch 2", "--list, --check and --prune take BUNDLE, --engine and --engines, and not --batch;"),
        ("--prune soon", "--prune: 'soon' is not a number;"),
    ],
)
def test_a_command_line_that_makes_no_sense_is_one_line(
    flags: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(flags.split())
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_a_bundle_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["/nowhere", "--engine", "tensorrt-rtx"]) == 1
    assert capsys.readouterr().err.startswith("lssgen-build: BundleError: /nowhere is not a bundle")
