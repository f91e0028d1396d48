"""Commands as processes: signals, closed and full streams, readers that leave, two at a time, odd names."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lssgen.commands import COMMANDS

PROJECT = Path(__file__).parents[2] / "pyproject.toml"
SCRIPTS: dict[str, str] = tomllib.loads(PROJECT.read_text())["project"]["scripts"]

# What pip writes for a script, but for the name.
SCRIPT = "import sys; sys.argv[0] = {name!r}; from {module} import {function}; sys.exit({function}())"

KILL_AT_IMPORT = """
import os, sys

class Signal:
    def find_spec(self, name, path=None, target=None):
        if name == "argparse":
            sys.meta_path.remove(self)
            os.kill(os.getpid(), {number})

sys.meta_path.insert(0, Signal())
"""

STOPPED = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


def script(name: str, *words: str | bytes) -> list[str | bytes]:
    """How to run a script as it is installed."""
    module, _, function = SCRIPTS[name].partition(":")
    return [sys.executable, "-c", SCRIPT.format(name=name, module=module, function=function), *words]


@pytest.fixture
def painting(toy: Path, tmp_path: Path) -> Callable[..., Any]:
    """Runs lssgen-run on the toy bundle, in an empty folder; the words come first."""

    def paint(*words: str | bytes, through: Sequence[str] = (), **keywords: Any) -> Any:
        command = [*through, *script("lssgen-run", *words, *flags(toy))]
        made = {"cwd": tmp_path, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": _home(tmp_path)}
        return subprocess.Popen(command, **{**made, **keywords})

    return paint


def flags(toy: Path) -> list[str]:
    return ["--bundle", str(toy), "--threads", "1", "--scaling-space", "latent"]


def _home(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "LSSGEN_HOME": str(tmp_path / "home")}


def _until(there: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not there():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)


@pytest.mark.parametrize("number", STOPPED, ids=lambda number: number.name)
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_signal_while_modules_are_imported_is_one_line(name: str, number: signal.Signals, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(KILL_AT_IMPORT.format(number=int(number)))
    words = ["plan"] if name == "lssgen" else []
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(script(name, *words), capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == STOPPED[number], done.stderr
    assert done.stderr == (f"{name} {words[0]}: stopped\n" if words else f"{name}: stopped\n")


@pytest.mark.parametrize("number", STOPPED, ids=lambda number: number.name)
def test_a_stopped_run_has_its_pictures_on_record(painting: Any, number: signal.Signals, tmp_path: Path) -> None:
    with painting("a", "--num-images", "5000", "-o", "x.png", "--quiet") as run:
        _until(lambda: len(list(tmp_path.glob("x-*.png"))) > 2)
        run.send_signal(number)
        _, err = run.communicate(timeout=60)
    assert (run.returncode, err) == (STOPPED[number], b"lssgen-run: stopped\n")
    record = json.loads((tmp_path / "x.run.json").read_text())
    assert record["finished"] is False
    assert {picture["file"] for picture in record["pictures"]} == {path.name for path in tmp_path.glob("x-*.png")}
    assert not list(tmp_path.glob(".*"))


def test_a_signal_that_comes_twice_at_once_is_one(painting: Any, tmp_path: Path) -> None:
    """As `timeout` sends it: to the process, and to its group."""
    with painting("a", "--num-images", "5000", "-o", "x.png", "--quiet") as run:
        _until(lambda: len(list(tmp_path.glob("x-*.png"))) > 2)
        for _ in range(20):
            run.terminate()
        _, err = run.communicate(timeout=60)
    assert (run.returncode, err) == (143, b"lssgen-run: stopped\n")
    record = json.loads((tmp_path / "x.run.json").read_text())
    assert {picture["file"] for picture in record["pictures"]} == {path.name for path in tmp_path.glob("x-*.png")}


def test_a_killed_run_has_its_earlier_pictures_on_record(painting: Any, tmp_path: Path) -> None:
    with painting("a", "--num-images", "5000", "-o", "x.png", "--quiet") as run:
        record = tmp_path / "x.run.json"
        _until(lambda: record.exists() and len(json.loads(record.read_text())["pictures"]) > 0)
        run.kill()
        run.communicate()
    assert run.returncode == -9


@pytest.mark.skipif(sys.platform == "win32", reason="a shell's nohup")
def test_what_nohup_ignores_stays_ignored(painting: Any, tmp_path: Path) -> None:
    with painting(
        "a", "--num-images", "30", "-o", "x.png", "--quiet", through=["nohup"], stdin=subprocess.DEVNULL
    ) as run:
        _until(lambda: len(list(tmp_path.glob("x-*.png"))) > 2)
        run.send_signal(signal.SIGHUP)
        run.communicate(timeout=60)
    assert run.returncode == 0


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "1>&- 2>&-", "0<&- 1>&- 2>&-"])
def test_closed_streams_change_neither_pictures_nor_status(painting: Any, closed: str, tmp_path: Path) -> None:
    through = ["sh", "-c", f'exec "$@" {closed}', "sh"]
    with painting("a", "-o", "x.png", through=through, stdout=None, stderr=None) as run:
        assert run.wait() == 0
    with Image.open(tmp_path / "x.png") as image:
        image.load()
    assert json.loads((tmp_path / "x.run.json").read_text())["finished"]
    with painting("a", "-o", "x.gif", through=through, stdout=None, stderr=None) as run:
        assert run.wait() == 1


@pytest.mark.parametrize(("words", "status"), [(("a", "-o", "x.gif"), 1), (("a", "--nonsense"), 2)])
def test_a_full_disk_behind_stderr_changes_neither_pictures_nor_status(
    painting: Any, words: tuple[str, ...], status: int, tmp_path: Path
) -> None:
    with Path("/dev/full").open("w") as full:
        with painting("a", "--num-images", "2", "-o", "x.png", stderr=full) as run:  # whose progress goes there
            assert run.wait() == 0
        with painting(*words, stderr=full) as run:
            assert run.wait() == status
    assert json.loads((tmp_path / "x.run.json").read_text())["finished"]


def test_a_name_that_the_terminal_cannot_show_is_spelt(painting: Any, tmp_path: Path) -> None:
    with painting("a", "-o", "\u00e9.png", env={**_home(tmp_path), "PYTHONIOENCODING": "ascii"}) as run:
        out, err = run.communicate()
    assert (run.returncode, out) == (0, b"\\xe9.png\n"), err


def _printing() -> list[tuple[str, list[str]]]:
    helps = [(name, ["--help"]) for name in SCRIPTS]
    return [
        *helps,
        ("lssgen", ["--version"]),
        ("lssgen-export", ["--list-models"]),
        ("lssgen-build", ["--list"]),
        ("lssgen-build", ["--prune"]),
        ("lssgen-plan", []),
        ("lssgen-plan", ["--json", "--steps", "300"]),
    ]


@pytest.mark.parametrize(
    ("name", "words"), _printing(), ids=lambda value: " ".join(value) if isinstance(value, list) else value
)
def test_a_reader_may_leave_and_a_full_disk_is_told(name: str, words: list[str], tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(script(name, *words), stdout=writer, stderr=subprocess.PIPE, check=False, env=_home(tmp_path))
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            script(name, *words), stdout=full, stderr=subprocess.PIPE, check=False, env=_home(tmp_path)
        )
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1
    assert b"No space left on device" in line


def test_a_run_whose_readers_leave_paints_on(painting: Any, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with painting("a", "-o", "x.png", "--num-images", "3", stdout=writer, stderr=writer) as run:
        os.close(writer)
        assert run.wait() == 0
    assert len(list(tmp_path.glob("x-*.png"))) == 3


def test_a_place_that_is_full_is_one_line_and_leaves_whole_files_only(painting: Any, tmp_path: Path) -> None:
    def full() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))

    with painting("a", "-o", "x.png", preexec_fn=full) as run:
        _, err = run.communicate()
    assert run.returncode == 1
    (line,) = err.splitlines()
    assert b"cannot be written: File too large" in line
    assert not [path for path in tmp_path.iterdir() if path.name != "home"]


@pytest.mark.parametrize("name", [b"a\nb.png", b"\xff\xfe.png", "\u20ac \U0001f600.png".encode(), b"-.png"])
def test_any_name_that_the_system_takes_is_one(painting: Any, name: bytes, tmp_path: Path) -> None:
    for words in ((b"-o", b"./" + name, b"a"), (b"--config", b"./" + name[:-4] + b".run.json", b"-o", b"./" + name)):
        with painting(*words) as run:
            out, err = run.communicate()
        assert run.returncode == 0, err
        assert out == name.removeprefix(b"./") + b"\n"
    with Image.open(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)) as image:
        image.load()


@pytest.mark.parametrize("words", [[b"\xff"], [b"a", b"--negative-prompt", b"\xff"]])
def test_bytes_that_are_not_text_are_one_line(painting: Any, words: list[bytes]) -> None:
    with painting(*words) as run:
        _, err = run.communicate()
    assert run.returncode in (1, 2)
    assert len(err.splitlines()) == 1, err


def test_two_runs_into_one_folder_do_not_mix(painting: Any, tmp_path: Path) -> None:
    with painting("a", "--num-images", "5000", "-o", "d/", "--quiet") as run:
        _until(lambda: (tmp_path / "d" / "0001.png").exists())
        with painting("a", "--seed", "7", "-o", "d/") as other:
            _, err = other.communicate()
        run.terminate()
    assert other.returncode == 1
    (line,) = err.splitlines()
    assert b"another run is writing pictures into d; wait for it, or choose another folder" in line
    record = json.loads((tmp_path / "d" / "run.json").read_text())
    assert record["configuration"]["seed"] == 0


@pytest.mark.parametrize(
    "flags", [("-o", "x.png"), ("-o", "y.png", "--preview", "p/"), ("-o", "y.png", "--dump-inputs", "i")]
)
def test_two_runs_with_one_name_do_not_mix(painting: Any, flags: tuple[str, ...], tmp_path: Path) -> None:
    common = ("--preview", "p/", "--dump-inputs", "i")
    with painting("a", "--num-images", "5000", "-o", "x.png", "--quiet", *common) as run:
        _until(lambda: (tmp_path / "x-0001.png").exists())
        with painting("a", "--seed", "7", *flags) as other:
            _, err = other.communicate()
        run.terminate()
    assert other.returncode == 1
    assert b"another run is writing" in err


def test_every_command_is_a_script_that_listens_first() -> None:
    own = {f"lssgen-{name}": f"lssgen.cli:{name.replace('-', '_')}" for name in COMMANDS}
    assert {"lssgen": "lssgen.cli:main", **own} == SCRIPTS


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_stopped_build_leaves_neither_a_half_nor_a_compiler(
    number: signal.Signals, toy: Path, tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx")
    words = ["--engine", "tensorrt-rtx", "--target", "sm89", "--engines", str(tmp_path / "e")]
    command = script("lssgen-build", str(toy), *words)
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=_home(tmp_path)) as build:
        _until(lambda: bool(list(tmp_path.glob("e/.*.partial"))))
        build.send_signal(number)
        _, err = build.communicate(timeout=60)
    assert build.returncode == STOPPED[number]
    assert err.splitlines()[-1] == b"lssgen-build: stopped"
    assert not list(tmp_path.glob("e/.*"))
    _until(lambda: not _children_with(str(tmp_path)))  # it hears of the end by itself, when its input ends


def _children_with(words: str) -> list[str]:
    """Processes that have some words in their command line or environment."""
    found: list[str] = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            said = b"".join((process / name).read_bytes() for name in ("cmdline", "environ"))
        except OSError:
            continue
        if words.encode() in said and process.name != str(os.getpid()):
            found.append(process.name)
    return found


@pytest.mark.slow
def test_a_stopped_export_goes_on_where_it_was(sd3: Path, tmp_path: Path) -> None:
    words = ["--model", str(sd3), "--resolutions", "64", "--probe", "none", "--output", str(tmp_path / "b")]
    with subprocess.Popen(script("lssgen-export", *words), stderr=subprocess.PIPE, env=_home(tmp_path)) as export:
        _until(lambda: bool(list(tmp_path.glob("b/*.onnx"))))
        export.terminate()
        _, err = export.communicate(timeout=60)
    assert export.returncode == 143
    assert err.splitlines()[-1] == b"lssgen-export: stopped"
    assert not list(tmp_path.glob("b/.export/draft-*"))
    done = subprocess.run(
        script("lssgen-export", *words), capture_output=True, text=True, check=True, env=_home(tmp_path)
    )
    assert "was there" in done.stderr
