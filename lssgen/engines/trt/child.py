"""A build in a process of its own, which may crash, may be stopped at once, and gives its memory back when it ends.

A compiler takes 3 to 4 times the bytes of the weights, holds its thread for minutes, and can crash: TensorRT-RTX 1.7.1
does where one tensor feeds Q, K and V of one Attention.
"""

import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from lssgen import errors
from lssgen.engines.trt.isolate import advice
from lssgen.engines.trt.job import Done, Facts, Job, Refused, Request, Step, Unwritten, Warned, answer_of, line
from lssgen.engines.trt.progress import Tell
from lssgen.errors import BuildError

_LOG = logging.getLogger("lssgen")
_SIGKILL = 9  # which Windows has no name for
_COMPILER = (sys.executable, "-m", "lssgen.engines.trt.compiler")


def compile_apart(job: Job, plan: Path, tell: Tell) -> Facts:
    """Compile a graph in a process of its own, and write the engine to a file.

    Whatever interrupts this, Ctrl-C or what `tell` raises, ends that process.

    Raises:
        BackendError, BuildError: As `lssgen.engines.trt.compiler.compile_graph`.
        BuildError: The compiler crashed, or was killed.
        OSError: The file cannot be written.
    """
    # A file and no pipe for what it says: nobody reads it meanwhile, and a full pipe would stop the compiler.
    with tempfile.TemporaryFile() as said, _compiler(said) as process:
        assert process.stdin is not None, "it is a pipe"
        assert process.stdout is not None, "it is a pipe"
        process.stdin.write(line(Request(job, plan)))
        process.stdin.flush()  # it stays open: its end tells the compiler that nobody waits any more
        for answer in map(answer_of, process.stdout):
            match answer:
                case Step(phase, share):
                    tell(job.name, phase, share)
                case Refused(kind, reason):
                    raise getattr(errors, kind)(reason)
                case Unwritten(number, reason, file):
                    raise OSError(number, reason, file)
                case Done(facts):
                    return facts
                case Warned(text):
                    _LOG.warning("%s", text)
        said.seek(0)
        raise BuildError(_obituary(job, process.wait(), said.read().decode(errors="replace")))


@contextmanager
def _compiler(said: IO[bytes]) -> Generator[subprocess.Popen[bytes]]:
    """The compiler's process; it is gone when the block ends. `said` is where its standard error goes."""
    here = os.pathsep.join(path for path in sys.path if path)  # it shall find what this process found
    process = subprocess.Popen(
        _COMPILER,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=said,
        env={**os.environ, "PYTHONPATH": here},
        start_new_session=True,  # the terminal's Ctrl-C is for us to hear and not for it; here, and on Windows:
        creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
    )
    try:
        yield process
    finally:
        process.kill()
        # Waits for its end, and closes the pipes.
        process.communicate()


def _obituary(job: Job, status: int, said: str) -> str:
    """Why there is no engine, from how the compiler's process ended."""
    what = f"{job.flavour} crashed while it built {job.name} from {job.onnx}"
    if status == -_SIGKILL:
        # The graph and the files with its weights, which bear its name.
        size = sum(file.stat().st_size for file in job.onnx.parent.glob(f"{job.onnx.stem}*"))
        return (
            f"the process that built {job.name} from {job.onnx} was killed (signal 9, SIGKILL), most often because the "
            f"machine has no memory left: a build takes 3 to 4 times the bytes of the weights, here of some "
            f"{size / 1e6:.0f} MB. Close other programs, or build on a machine with more memory"
        )
    # The last line, such as an abort's or an exception's; there may be pages before it.
    last = said.strip().rpartition("\n")[2]
    said_last = f" ({last})" if last else ""
    if status < 0:
        return f"{what}: signal {-status}, {signal.Signals(-status).name}{said_last}. {advice(job)}"
    return f"{what}: exit status {status}{said_last}. {advice(job)}"
