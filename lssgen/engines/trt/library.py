"""The two libraries behind one name: `tensorrt` and `tensorrt_rtx` share nearly all of their Python API.

What differs is found by `hasattr` where it is used. The classes that a library calls back (logger, progress
monitor) must derive from that library's own, so they are made here, once a library.
"""

import re
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal

from lssgen.errors import BackendError

Flavour = Literal["tensorrt", "tensorrt-rtx"]

_MODULES: dict[Flavour, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
# The first whose ONNX parser has Attention with TRT_decomposable and RMSNormalization.
_OLDEST: dict[Flavour, tuple[int, ...]] = {"tensorrt": (10, 15), "tensorrt-rtx": (1, 7)}


_KEPT = ("Layers:", "Total ")  # what a report is read from; a verbose log as a whole can be hundreds of MB


# "IBuilder::buildSerializedNetwork: Error Code 4: API Usage Error (the reason. In function at file.cpp:12)"
_ERROR = re.compile(r"Error Code \d+: [\w ]+ \((.*?)(?: In \S+ at \S+:\d+)?\)\s*$", re.DOTALL | re.MULTILINE)


@dataclass(slots=True, eq=False)
class Log:
    """What a library said during one piece of work.

    Attributes:
        thread: Thread that works.
        lines: Lines that a report is read from, in order.
        errors: Lines that it reported as errors, in order: the first one is the cause.
    """

    thread: int
    lines: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def reason(self) -> str:
        """The cause of a failure in one line."""
        return plain(self.errors[0]) if self.errors else "it gave no reason"


def plain(message: str) -> str:
    """A library's message in one line, without its own functions, source files and line numbers."""
    found = _ERROR.search(message)
    return " ".join((found[1] if found else message).split())


class Library:
    """One of the two modules, and how to listen to it.

    There is a second way to hear errors, IErrorRecorder; with it, TensorRT-RTX 1.7.1 crashes in the destructor of a
    network that has layers.

    Attributes:
        flavour: "tensorrt" or "tensorrt-rtx".
        module: The Python module.
        version: Its version.
        logger: The only logger this process gives to the library, which keeps the first one it sees.
    """

    def __init__(self, flavour: Flavour, module: Any) -> None:
        self.flavour: Flavour = flavour
        self.module: Any = module
        self.version = str(module.__version__)
        self._logs: tuple[Log, ...] = ()
        self._changing = threading.Lock()
        # One for the process: the first logger that a process gives is kept, and later ones are ignored.
        self.logger: Any = _logger(module, self._hear)

    def _hear(self, line: str, is_error: bool) -> None:
        """A line goes to who listens on its thread; one of the library's own threads, to everybody."""
        # A tuple that is replaced and never changed, so that the library's threads need no lock here.
        thread, logs = threading.get_ident(), self._logs
        for log in [log for log in logs if log.thread == thread] or logs:
            if line.startswith(_KEPT):
                log.lines.append(line)
            if is_error:
                log.errors.append(line)

    @contextmanager
    def listen(self) -> Generator[Log]:
        """Collect what the library says to this thread meanwhile. Other threads may listen at the same time."""
        log = Log(threading.get_ident())
        with self._changing:
            self._logs = (*self._logs, log)
        try:
            yield log
        finally:
            with self._changing:
                self._logs = tuple(other for other in self._logs if other is not log)


_libraries: dict[Flavour, Library] = {}


def require_library(flavour: Flavour) -> Library:
    """Import a library, once a process.

    Raises:
        BackendError: Not installed, its shared libraries do not load, or too old.
    """
    if flavour not in _libraries:
        try:
            module = import_module(_MODULES[flavour])
            if not hasattr(module, "Runtime"):
                raise ImportError("only type stubs of that name are installed")
        except (ImportError, OSError) as error:
            raise BackendError(
                f"engine {flavour!r} needs the Python package {_MODULES[flavour]}, which cannot be imported ({error}); "
                f'install it with pip install "lssgen[{flavour}]"'
            ) from error
        # Two parts, which are numbers; later ones may hold letters.
        version = tuple(int(part) for part in str(module.__version__).split(".")[:2])
        if version < _OLDEST[flavour]:
            oldest = ".".join(map(str, _OLDEST[flavour]))
            raise BackendError(
                f"{_MODULES[flavour]} {module.__version__} is too old, lssgen needs {oldest} or newer; "
                f'upgrade with pip install -U "lssgen[{flavour}]"'
            )
        _libraries[flavour] = Library(flavour, module)
    return _libraries[flavour]


def progress_monitor(module: Any, tell: Callable[[str, float], None]) -> Any:
    """An IProgressMonitor that reports the share of the work done.

    Phases nest, and a phase says how many steps it has; a step of a phase is worth an equal part of its parent's step.
    """

    class Monitor(module.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            # By name: of a class derived from its own, pybind11 wants the base initialised explicitly, as NVIDIA
            # documents.
            module.IProgressMonitor.__init__(self)
            self.starts: dict[str, float] = {}
            self.worth: dict[str, float] = {}
            self.furthest = 0.0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            start, whole = 0.0, 1.0
            if parent_phase is not None and parent_phase in self.starts:
                start, whole = self.starts[parent_phase], self.worth[parent_phase]
            self.starts[phase_name], self.worth[phase_name] = start, whole / max(1, num_steps)

        def phase_finish(self, phase_name: str) -> None:
            self.starts.pop(phase_name, None)
            self.worth.pop(phase_name, None)
            # The outermost phase has ended, of however many steps it had foreseen.
            if not self.starts:
                tell(phase_name, 1.0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            del step
            if phase_name in self.starts:
                self.starts[phase_name] += self.worth[phase_name]
                # Phases may run side by side, and a later one may begin before what an earlier one has reached.
                self.furthest = min(1.0, max(self.furthest, self.starts[phase_name]))
                tell(phase_name, self.furthest)
            return True

    return Monitor()


def _logger(module: Any, hear: Callable[[str, bool], None]) -> Any:
    serious = (module.ILogger.Severity.INTERNAL_ERROR, module.ILogger.Severity.ERROR)

    class Logger(module.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            module.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            hear(msg, severity in serious)

    return Logger()
