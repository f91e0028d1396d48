"""What may happen to the files of a training."""

import resource
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image


def spoil(images: Path, folder: Path, count: int, bad: set[int]) -> tuple[Path, ...]:
    """Copies of the first pictures, as JPEG; of those with these numbers only the beginning, which has the header."""
    folder.mkdir(exist_ok=True)
    paths = tuple(folder / f"{number}.jpg" for number in range(count))
    for number, path in enumerate(paths):
        Image.open(images / f"{number}.png").save(path)
        if number in bad:
            path.write_bytes(path.read_bytes()[:-200])
    return paths


def flip(path: Path, place: float = 0.5) -> None:
    """Another bit, this far into the file (0 to 1)."""
    data = bytearray(path.read_bytes())
    data[int(place * (len(data) - 1))] ^= 1
    path.write_bytes(bytes(data))


@contextmanager
def full_disk(size: int) -> Generator[None]:
    """No file can become larger than this many bytes within it; the system's word is another one than ENOSPC."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
