"""lssgen serve as a process: what it says, what it refuses, and how it ends."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from lssgen.bundle import Bundle
from lssgen.cli import main
from lssgen.commands.serve import bundles_of
from lssgen.errors import ServingError

FEW = {"prompt": "a red star above a blue circle on a white background", "num_inference_steps": 2, "size": "128x128"}


@contextmanager
def served(bundle: Path, home: Path, *words: str) -> Generator[tuple[subprocess.Popen[str], str]]:
    """The command as a process of its own, when it is ready."""
    command = [sys.executable, "-m", "lssgen", "serve", str(bundle), "--port", "0", "--threads", "1", *words]
    environment = {**os.environ, "LSSGEN_HOME": str(home), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stderr is not None
            said = iter(process.stderr.readline, "")
            url = next(found[1] for line in said if (found := re.search(r"listening at (http://\S+),", line)))
            wait_ready(url)
            yield process, url
        finally:
            process.kill()


def wait_ready(url: str) -> None:
    end = time.monotonic() + 60
    while True:
        try:
            if ask(url, "/health/ready")["status"] == "ready":
                return
        except (HTTPError, OSError):
            assert time.monotonic() < end
        time.sleep(0.05)


def ask(url: str, path: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    with urlopen(Request(url + path, data, {"content-type": "application/json"}), timeout=60) as answer:
        return json.loads(answer.read())


def test_it_paints_and_when_told_to_stop_finishes_what_is_open_and_ends_with_0(demo: Bundle, tmp_path: Path) -> None:
    with served(demo.folder, tmp_path, "--sizes", "128", "--log", "json") as (process, url):
        assert [model["id"] for model in ask(url, "/v1/models")["data"]] == ["demo"]
        job = ask(url, "/v1/jobs", {**FEW, "num_inference_steps": 12})
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert process.stderr is not None
        lines = process.stderr.read().splitlines()
    assert "lssgen serve: stopping; what is open may end, a second Ctrl-C does not wait for it" in lines
    requests = [json.loads(line) for line in lines if line.startswith("{")]
    assert requests[-1]["job"] == job["id"]
    (record,) = (tmp_path / "serving").glob(f"*/jobs/{job['id']}.json")
    assert json.loads(record.read_bytes())["state"] == "done"


@pytest.mark.slow
def test_after_a_kill_the_next_server_finishes_what_was_acknowledged(demo: Bundle, tmp_path: Path) -> None:
    words = ("--sizes", "128", "--state", str(tmp_path / "state"))
    with served(demo.folder, tmp_path, *words) as (process, url):
        jobs = [ask(url, "/v1/jobs", {**FEW, "seed": seed, "num_inference_steps": 30}) for seed in range(8)]
        time.sleep(0.3)
        process.kill()
        process.wait()
    with served(demo.folder, tmp_path, *words) as (process, url):
        end = time.monotonic() + 90
        states: list[str] = []
        while set(states) != {"done"}:
            assert time.monotonic() < end, states
            states = [ask(url, f"/v1/jobs/{job['id']}")["status"] for job in jobs]
            time.sleep(0.2)
        seeds = [ask(url, f"/v1/jobs/{job['id']}/result")["data"][0]["seed"] for job in jobs]
    assert seeds == list(range(8))


def test_a_port_that_is_taken_is_told_before_anything_is_loaded(
    demo: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", str(demo.folder), "--port", str(port)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"lssgen serve: ServingError: port {port} of 127.0.0.1 is taken; stop what listens there, or choose another "
        "one with --port"
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{missing}"], "BundleError: "),
        (["{bundle}", "--api-keys", "{missing}"], "ServingError: API keys .* cannot be read"),
        (["{bundle}", "other/demo=1"], "BundleError: "),
        (["{bundle}", "{bundle}"], "ServingError: two bundles are called"),
        (["{bundle}", "--host", "no.such.host.invalid"], "ServingError: cannot listen at port 0 of no.such.host"),
        (["{bundle}", "--public-url", "ftp://x"], "ServingError: public_url is 'ftp://x'"),
        (["{bundle}", "--sizes", "61"], "PlanError: "),
        (["{bundle}", "--alias", "x=nothing"], "nothing"),
        (["{bundle}", "--lora", "x={missing}"], "ModelError: there is no LoRA .*missing"),
        (["{bundle}", "--lora", "a@b={bundle}"], "ModelError: 'a@b' cannot name a LoRA"),
    ],
)
def test_what_makes_no_sense_is_one_line(
    demo: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    places = {"bundle": demo.folder, "missing": tmp_path / "missing"}
    state = ["--port", "0", "--state", str(tmp_path / "state")]
    assert main(["serve", *(word.format(**places) for word in words), *state]) == 1
    *_, line = capsys.readouterr().err.splitlines()
    assert re.match(rf"lssgen serve: .*{said}", line), line


def test_a_damaged_bundle_is_refused(demo: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(demo.folder, folder)
    data = bytearray((folder / "step.data").read_bytes())
    data[100] ^= 1
    (folder / "step.data").write_bytes(data)
    assert main(["serve", str(folder), "--port", "0", "--state", str(tmp_path / "s"), "--verify", "always"]) == 1
    assert "BundleError" in capsys.readouterr().err


def test_a_bundle_whose_engine_cannot_be_loaded_ends_the_server(
    demo: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(demo.folder, folder)
    (folder / "step.onnx").write_bytes(b"no graph")
    words = ["--port", "0", "--state", str(tmp_path / "s"), "--verify", "never"]
    assert main(["serve", str(folder), *words]) == 1
    assert re.match(r"lssgen serve: \w+Error: .*step", capsys.readouterr().err.splitlines()[-1])


def test_bundles_have_the_names_that_are_given_or_those_of_their_folders(demo: Bundle, tmp_path: Path) -> None:
    found = bundles_of([str(demo.folder), f"painter={demo.folder}"])
    assert found == {"demo": demo.folder, "painter": demo.folder}
    with pytest.raises(ServingError, match="two bundles are called demo"):
        bundles_of([str(demo.folder), f"demo={tmp_path}"])


def test_two_servers_do_not_share_a_folder_of_jobs(
    demo: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from lssgen.durable import locked

    with locked(tmp_path / ".lock"):
        assert main(["serve", str(demo.folder), "--port", "0", "--state", str(tmp_path)]) == 1
    assert "another server has its jobs in" in capsys.readouterr().err


def test_what_is_missing_is_named(
    demo: Bundle, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("lssgen.serving.http.host")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "starlette.applications", None)
    assert main(["serve", str(demo.folder)]) == 1
    assert 'pip install "lssgen[serve]"' in capsys.readouterr().err


def test_serving_and_its_help_need_no_torch() -> None:
    code = (
        "import sys; sys.modules.update(torch=None, transformers=None, pydantic=None, onnx=None)\n"
        "import lssgen.serving.http.host, lssgen.serving.triton.repository\n"
        "from lssgen.cli import main\n"
        "main(['serve', '--help'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "usage: lssgen serve" in done.stdout, done.stderr
