"""What a training needs of the machine: a device that works, and memory."""

from collections.abc import Generator
from contextlib import contextmanager

import torch

from lssgen.errors import TrainingError


def device_of(name: str) -> torch.device:
    """The device of that name, which works.

    Args:
        name: torch's, or "auto": the first GPU, or else the CPU.

    Raises:
        TrainingError: It cannot be used.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except Exception as error:  # by backend RuntimeError, AssertionError, NotImplementedError and more
        raise TrainingError(f"device {name!r} cannot be used: {first_line(error)}; give cpu, cuda or auto") from error
    return device


@contextmanager
def told_plainly() -> Generator[None]:
    """Turns what torch says where it gets no memory, or loses a process, into a `TrainingError` that says what to do.

    Both may come at any moment: torch hears of a process that has died wherever the training just is.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        said = str(error)
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in said:
            raise TrainingError(
                f"not enough memory ({first_line(error)}); give a smaller --batch with more --accumulate, which has "
                "the same gradients, a smaller --crop, or fewer --cached-pairs"
            ) from error
        if "DataLoader worker" in said:
            raise reader_died(error) from error
        raise


def reader_died(error: Exception) -> TrainingError:
    """What to raise where one of the processes that read pictures is gone."""
    return TrainingError(
        f"a process that reads pictures has died ({first_line(error)}); give fewer --workers, or 0, and run the same "
        "command again"
    )


def first_line(error: Exception) -> str:
    """What an error says, on one line."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
