"""What must not be freed while a thread captures a CUDA graph, and is freed afterwards."""

import gc
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any


class Waste:
    """Frees what is not needed any more, and what is dropped by a thread that captures, once it has captured.

    cudaFree from a capturing thread makes the capture invalid, and objects die where Python lets them die.
    """

    def __init__(self) -> None:
        self._capturing: int | None = None
        self._later: list[tuple[Callable[[Any], object], Any]] = []

    def free(self, function: Callable[[Any], object], handle: Any) -> None:
        """Free now or later. A failure goes unheard: at interpreter exit the driver may be gone already."""
        if self._capturing == threading.get_ident():
            self._later.append((function, handle))
        else:
            function(handle)

    @contextmanager
    def kept(self) -> Generator[None]:
        """Free nothing from this thread meanwhile."""
        self._capturing = threading.get_ident()
        try:
            yield
        finally:
            self._capturing = None
            while self._later:
                function, handle = self._later.pop()
                function(handle)


_captures: list[bool] = []
"""Captures that are going on in this process: whether the collector was on when each began."""
_captures_lock = threading.Lock()


@contextmanager
def no_collector() -> Generator[None]:
    """Let no garbage collection free what belongs to a library, of which `Waste` knows nothing, during a capture."""
    with _captures_lock:
        # A capture that begins during another finds the collector off already, and must have it on again at the end.
        _captures.append(gc.isenabled() or any(_captures))
        gc.disable()
    try:
        yield
    finally:
        with _captures_lock:
            if _captures.pop() and not _captures:
                gc.enable()
