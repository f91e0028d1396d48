"""What TensorRT measured on a GPU while it built, kept for its next build there.

A build that finds its timings measures nothing again: it is faster, and, the cache being an editable one, it chooses
the same kernels, so that an engine that is built again is the one that was built before.

Source: NVIDIA's documentation of TensorRT, on timing caches and reproducible builds.
"""

import logging
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lssgen.durable import locked, write_whole

if TYPE_CHECKING:
    import tensorrt as trt

_LOG = logging.getLogger("lssgen")


@contextmanager
def kept_timings(module: Any, config: "trt.IBuilderConfig", file: Path) -> Generator[None]:
    """Give a build what `file` holds, and add to the file what the build measured, if the block ends well.

    Args:
        module: The library's module.
        config: Configuration of the build.
        file: File of this library version and this GPU; need not exist. Only a convenience: what cannot be read or
            written costs time, and no build.
    """
    config.set_flag(module.BuilderFlag.EDITABLE_TIMING_CACHE)
    cache = _read(config, file)
    # False: a cache of another device or version is not to be used all the same.
    if not config.set_timing_cache(cache, False):
        _LOG.warning("the timings in %s are of another GPU or library, and are measured again", file)
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
    yield
    # Read and written under one lock, or of two builds that end together one would lose its timings.
    with suppress(OSError), locked(file.with_suffix(".lock")):
        newest = _read(config, file)  # another process may have been here
        cache.combine(newest, False)
        write_whole(file, memoryview(cache.serialize()))


def _read(config: "trt.IBuilderConfig", file: Path) -> "trt.ITimingCache":
    """The cache in a file; an empty one where there is none, or none that the library can read."""
    stored = file.read_bytes() if file.is_file() else b""
    return config.create_timing_cache(stored) or config.create_timing_cache(b"")
