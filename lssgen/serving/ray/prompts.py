"""Prompt files on many machines, by Ray Data: pictures are written where they are made, and only their names travel.

The folder is one that every machine sees. It is the folder of `lssgen run --prompts`, with one run.json for all of it:
a run that was stopped goes on with or without Ray.
"""

# pyright: reportCallIssue=false
# Where Ray is not installed, the type checker takes this folder for it.

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import ray
import ray.data
from ray.exceptions import RayError

from lssgen.bundle import read_bundle
from lssgen.engines.options import EngineOptions
from lssgen.engines.registry import open_backend
from lssgen.errors import ServingError
from lssgen.runtime.checking import Guard
from lssgen.runtime.options import Asked, Options
from lssgen.runtime.pipeline import Pipeline
from lssgen.runtime.prompt_file import PromptFolders, PromptLine
from lssgen.runtime.results import Progress

MOST_BLOCKS = 1000
"""Parts that a prompt file is cut into. A worker takes one at a time, and tells when it has ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What every worker is told.

    Attributes:
        bundle: Folder of the bundle, at the same place on every machine.
        engine, words: Engine, and its options.
        folder: Folder of the run, which every machine sees.
        options: The same for every prompt.
        suffix: File format of the pictures.
        hooks: Names of the hooks that pictures pass, as `lssgen.runtime.checking.Guard` takes them.
    """

    bundle: Path
    engine: str
    words: EngineOptions
    folder: Path
    options: Options
    suffix: str
    hooks: Mapping[str, Any] = field(default_factory=dict[str, Any])


class Worker:
    """Paints prompts, one at a time, with a pipeline that stays.

    Args:
        work: What to paint with.
    """

    def __init__(self, work: Work) -> None:
        backend = open_backend(work.engine, **work.words)
        self._pipeline = Pipeline(read_bundle(work.bundle), backend, guard=Guard(**work.hooks))
        self._folders = PromptFolders(self._pipeline, work.folder, Asked(**work.options), work.suffix)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Paint the prompts of a batch, and write their folders; gives their numbers and seconds."""
        lines = [msgspec.json.decode(text, type=PromptLine) for text in batch["line"]]
        done = list(self._folders.paint(lines, _silent))
        seconds = [sum(times.total for times in result.times) for _, result in done]
        return {"number": [line.number for line, _ in done], "seconds": seconds}


def paint_on_ray(
    work: Work, lines: Sequence[PromptLine], *, address: str, workers: int, gpus: float
) -> Iterator[tuple[int, float]]:
    """Paint prompts on a cluster.

    Args:
        work: What the workers are told. Whoever calls holds the folder's lock.
        lines: Prompts.
        address: Of the cluster: "auto", "ray://head:10001"; "local" starts one on this machine.
        workers: Most workers at a time.
        gpus: GPUs of each.

    Yields:
        Number of a prompt whose folder is complete, and the seconds that it took.

    Raises:
        ServingError: The cluster cannot be reached, or a worker failed.
    """
    try:
        ray.init(None if address == "local" else address, ignore_reinit_error=True, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ServingError(f"no Ray cluster answers at {address}: {error}") from error
    ray.data.DataContext.get_current().enable_progress_bars = False
    data = ray.data.from_items([{"line": msgspec.json.encode(line)} for line in lines])
    painted = data.repartition(min(len(lines), MOST_BLOCKS) or 1).map_batches(
        Worker, fn_constructor_args=(work,), batch_size=1, concurrency=(1, max(1, workers)), num_gpus=gpus, num_cpus=1
    )
    try:
        for row in painted.iter_rows():
            yield int(row["number"]), float(row["seconds"])
    except RayError as error:
        cause = str(getattr(error, "cause", None) or error).strip().splitlines()[-1]
        raise ServingError(f"a worker failed: {cause}; run it again, and it goes on with what is missing") from error


def _silent(progress: Progress) -> None:
    del progress
