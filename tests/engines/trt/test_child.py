"""Builds in a process of their own: crashes, kills and Ctrl-C; with TensorRT-RTX, which needs no GPU to build."""

import _thread
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from attention import attention_bundle, write_graph

from lssgen.bundle import Bundle
from lssgen.engines.demand import Demand, Profile, fixed, profiles_of
from lssgen.engines.trt import child
from lssgen.engines.trt.isolate import isolating_line
from lssgen.engines.trt.job import Done, Facts, Job, Request, Step, answer_of, line, request_of
from lssgen.engines.trt.order import Order, build_engines
from lssgen.engines.trt.progress import quiet
from lssgen.errors import BuildError

pytest.importorskip("tensorrt_rtx", reason="the wheel tensorrt-rtx-cu13 is not installed")

ONE_TENSOR = """
<ir_version: 10, opset_import: ["" : 23]>
step (float[batch,height,64] latent) => (float[batch,height,64] next_latent) {
  x = Cast<to=TYPE>(latent)
  y = MatMul(x, w)
  [attend] a = Attention<q_num_heads=2, kv_num_heads=2>(y, y, y)
  z = Add(a, x)
  next_latent = Cast<to=1>(z)
}
"""
"""One tensor as Q, K and V of one Attention: TensorRT-RTX 1.7.1 crashes, whether or not it is copied by Identity."""


def job_of(folder: Path, text: str = ONE_TENSOR) -> Job:
    step = write_graph(folder, "one", text, {"w": (64, 64)}, "fp16")
    profiles = (Profile({"batch": fixed(1), "height": fixed(16)}),)
    onnx = folder / step.file
    return Job(flavour="tensorrt-rtx", name="step", onnx=onnx, inputs=step.inputs, profiles=profiles, targets=("sm89",))


@pytest.fixture
def order(tmp_path: Path) -> Order:
    return Order(flavour="tensorrt-rtx", targets=("sm89",), folder=tmp_path / "engines")


@pytest.fixture
def pids(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Processes that builds were started in."""
    found: list[int] = []
    start = subprocess.Popen

    def started(*words: object, **options: object) -> object:
        process = start(*words, **options)  # type: ignore[call-overload]
        found.append(process.pid)
        return process

    monkeypatch.setattr(child.subprocess, "Popen", started)
    return found


def test_a_compiler_that_crashes_takes_nobody_with_it_and_says_how_to_find_the_node(tmp_path: Path) -> None:
    job = job_of(tmp_path)
    with pytest.raises(BuildError) as raised:
        child.compile_apart(job, tmp_path / "plan", quiet)
    said = str(raised.value)
    assert said.startswith(f"tensorrt-rtx crashed while it built step from {job.onnx}: signal 11, SIGSEGV. ")
    assert said.endswith(isolating_line(job))


def test_the_line_that_finds_the_node_is_for_the_shell_and_for_these_sizes(tmp_path: Path) -> None:
    job = job_of(tmp_path)
    words = shlex.split(isolating_line(job))
    assert words[0] == "POLYGRAPHY_USE_TENSORRT_RTX=1"
    assert words[1:5] == ["polygraphy", "debug", "reduce", str(job.onnx)]
    assert words[words.index("--model-input-shapes") + 1] == "latent:[1,16,64]"
    assert words[-3:] == ["--decomposable-attentions", "--compute-capabilities", "8.9"]


@pytest.mark.slow
def test_the_line_finds_the_node(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnx_graphsurgeon", reason="onnx-graphsurgeon is not installed")
    tool = Path(sys.executable).with_name("polygraphy")
    if not tool.exists():
        pytest.skip("polygraphy is not installed")
    path = f"{tool.parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        isolating_line(job_of(tmp_path)), shell=True, cwd=tmp_path, env={**os.environ, "PATH": path}, timeout=300
    )
    assert done.returncode == 0
    assert [node.name for node in onnx.load(tmp_path / "reduced.onnx").graph.node] == ["attend"]


def test_a_build_that_was_killed_is_told_from_one_that_crashed(toy: Path, tmp_path: Path, pids: list[int]) -> None:
    bundle = attention_bundle(toy, tmp_path / "bundle")

    def kill(*_: object) -> None:
        os.kill(pids[-1], signal.SIGKILL)

    with pytest.raises(BuildError, match=r"was killed \(signal 9, SIGKILL\), most often because"):
        child.compile_apart(job_for(bundle), tmp_path / "plan", kill)


def test_what_tell_raises_ends_the_build_and_leaves_nothing(
    toy: Path, tmp_path: Path, order: Order, pids: list[int]
) -> None:
    bundle = attention_bundle(toy, tmp_path / "bundle")

    def stop(*_: object) -> None:
        raise TimeoutError("no longer wanted")

    with pytest.raises(TimeoutError):
        build_engines(bundle, order, stop)
    assert [path.suffix for path in order.folder.iterdir()] == [".lock"]
    assert not alive(pids[-1])


@pytest.fixture
def sigint() -> Iterator[None]:
    """A shell starts what runs in its background with SIGINT ignored; Python then never raises."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("sigint")
@pytest.mark.parametrize("attempt", range(3))
def test_ctrl_c_ends_the_build_at_once_and_leaves_nothing(
    toy: Path, tmp_path: Path, order: Order, pids: list[int], attempt: int
) -> None:
    del attempt
    pressed: list[bool] = []

    def press(*_: object) -> None:
        if not pressed:
            pressed.append(True)
            _thread.interrupt_main()

    bundle = attention_bundle(toy, tmp_path / "bundle")
    with pytest.raises(KeyboardInterrupt):
        build_engines(bundle, order, press)
    assert [path.suffix for path in order.folder.iterdir()] == [".lock"]
    assert not alive(pids[-1])
    assert build_engines(bundle, order)["step"].report.attentions == 1  # and the next one goes well


def test_the_terminals_ctrl_c_does_not_reach_the_compiler(toy: Path, tmp_path: Path, pids: list[int]) -> None:
    sessions: set[int] = set()
    bundle = attention_bundle(toy, tmp_path / "bundle")
    child.compile_apart(job_for(bundle), tmp_path / "plan", lambda *_: sessions.add(os.getsid(pids[-1])))
    assert sessions == {pids[-1]} != {os.getsid(0)}


def test_the_compiler_ends_when_nobody_waits_for_it_any_more(toy: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(child._COMPILER, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdin is not None
    assert process.stdout is not None
    bundle = attention_bundle(toy, tmp_path / "bundle")
    process.stdin.write(line(Request(job_for(bundle), tmp_path / "plan")))
    process.stdin.flush()
    process.stdout.readline()  # it builds
    process.stdin.close()
    process.stdout.read()
    assert process.wait(60) == 1
    process.stdout.close()
    assert not (tmp_path / "plan").exists()


PARENT = """
import sys
from pathlib import Path
from lssgen.bundle import read_bundle
from lssgen.engines.trt import child
from lssgen.engines.trt.order import Order, build_engines
started = child.subprocess.Popen
def start(*words, **options):
    process = started(*words, **options)
    print(process.pid, flush=True)
    return process
child.subprocess.Popen = start
build_engines(read_bundle(Path(sys.argv[1])), Order(flavour="tensorrt-rtx", folder=Path(sys.argv[2])))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's help is Linux's")
def test_the_compiler_does_not_outlive_its_parent(toy: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-c", PARENT, str(toy), str(tmp_path / "engines")]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
    end = time.monotonic() + 30
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.05)
    assert not alive(pid)


PRINTING = """
import os
from lssgen.engines.trt.compiler import Step, _own_output, line
answers = _own_output()
os.write(1, b"printed\\n")
answers.write(line(Step("x", 0.5)))
answers.flush()
"""


def test_what_the_library_prints_does_not_come_between_the_answers(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", PRINTING], capture_output=True, cwd=tmp_path, check=True)
    assert (answer_of(done.stdout), done.stderr) == (Step("x", 0.5), b"printed\n")


def test_a_plan_that_cannot_be_written_is_an_error_of_the_file_system(toy: Path, tmp_path: Path) -> None:
    bundle = attention_bundle(toy, tmp_path / "bundle")
    with pytest.raises(FileNotFoundError, match="missing/plan"):
        child.compile_apart(job_for(bundle), tmp_path / "missing" / "plan", quiet)


def test_two_threads_may_build_at_the_same_time(toy: Path, tmp_path: Path) -> None:
    bundle = attention_bundle(toy, tmp_path / "bundle")
    facts: list[Facts] = []

    def work(number: int) -> None:
        facts.append(child.compile_apart(job_for(bundle), tmp_path / f"plan{number}", quiet))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(facts) == 2
    assert all((tmp_path / f"plan{number}").stat().st_size == facts[number].plan_bytes for number in range(2))


def test_what_crosses_the_pipe_arrives_as_it_was(tmp_path: Path) -> None:
    request = Request(job_of(tmp_path), tmp_path / "plan")
    assert request_of(line(request)) == request
    facts = Facts(
        plan_bytes=1,
        plan_sha256="x",
        weight_bytes=2,
        activation_bytes=(3,),
        attentions=1,
        unfused=(),
        largest=(4, "n"),
        layers=5,
    )
    assert answer_of(line(Done(facts))) == Done(facts)


def alive(pid: int) -> bool:
    """Whether a process runs; one that is dead and only not buried yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def job_for(bundle: Bundle) -> Job:
    step = bundle.manifest.graphs["step"]
    profiles = profiles_of(bundle.manifest, Demand())["step"]
    onnx = bundle.path(step.file)
    return Job(flavour="tensorrt-rtx", name="step", onnx=onnx, inputs=step.inputs, profiles=profiles, targets=("sm89",))
