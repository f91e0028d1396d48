"""Instructions that a piece of work takes in user space, where the system counts them: Linux's perf events.

Most virtual machines have no such counter, and containers may forbid it; then there is no number, and nobody waits for
one.

Source: perf_event_open(2), with the structure's size and constants of linux/perf_event.h.
"""

import ctypes
import os
import platform
import struct
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass

_CALL = {"x86_64": 298, "aarch64": 241}
"""Number of the system call, by architecture."""

_ATTR_BYTES = 112
_DISABLED, _NO_KERNEL, _NO_HYPERVISOR = 1 << 0, 1 << 5, 1 << 6
_ENABLE, _DISABLE = 0x2400, 0x2401


@dataclass(frozen=True, slots=True)
class Event:
    """What is counted.

    Attributes:
        kind, config: Type and number of the event, as in linux/perf_event.h.
    """

    kind: int
    config: int


INSTRUCTIONS = Event(0, 1)
"""Instructions that the processor retires."""

NANOSECONDS = Event(1, 1)
"""Time that the thread has a processor, by the kernel. Counted everywhere, so that tests can see the counting work."""


def counted(work: Callable[[], object], event: Event = INSTRUCTIONS) -> int | None:
    """How many events of this thread some work takes; None, and nothing is done, where they are not counted."""
    with _opened(event) as counter:
        if counter is None:
            return None
        _told(counter, _ENABLE)
        try:
            work()
        finally:
            _told(counter, _DISABLE)
        return int.from_bytes(os.read(counter, 8), sys.byteorder)


@contextmanager
def _opened(event: Event) -> Generator[int | None]:
    """The file of a counter of this thread, not counting yet; None where there is none."""
    number = _CALL.get(platform.machine())
    if number is None or sys.platform != "linux":
        yield None
        return
    flags = _DISABLED | _NO_KERNEL | _NO_HYPERVISOR
    head = struct.pack("=IIQQQQQ", event.kind, _ATTR_BYTES, event.config, 0, 0, 0, flags)
    attributes = ctypes.create_string_buffer(head, _ATTR_BYTES)
    # This thread, on any processor, in no group.
    counter = int(ctypes.CDLL(None).syscall(number, attributes, 0, -1, -1, 0))
    if counter < 0:
        yield None
        return
    try:
        yield counter
    finally:
        os.close(counter)


def _told(counter: int, request: int) -> None:
    import fcntl  # absent on Windows

    fcntl.ioctl(counter, request, 0)
