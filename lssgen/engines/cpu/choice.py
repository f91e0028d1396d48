"""Which engine was chosen for a component, why, and where that is remembered."""

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec

from lssgen import paths
from lssgen.bundle import Bundle
from lssgen.durable import write_whole
from lssgen.engines.cpu.probe import BOUNDS
from lssgen.errors import BackendError
from lssgen.jsons import JsonError, read_json
from lssgen.machine import cpu_name, cpus

CLEARLY = 1.03
"""Times that another engine must be faster than the first in the list to take its place: below, it is noise."""


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """An engine on one component.

    Attributes:
        engine: Its name.
        ms: Milliseconds of one call at the largest usual size; the median. None where it cannot run it.
        error: Relative L2 distance of its outputs from those of ONNX Runtime in float32.
        how: Number format it computed in.
        refused: Its words where it cannot run it.
    """

    engine: str
    ms: float | None = None
    error: float = 0.0
    how: str = ""
    refused: str = ""

    @property
    def fits(self) -> bool:
        """Whether it runs, and stays within the bound of bfloat16."""
        return self.ms is not None and self.error <= BOUNDS["bf16"]

    def __str__(self) -> str:
        if self.ms is None:
            return f"{self.engine} cannot run it: {self.refused}"
        said = f"{self.engine} ({self.how}) {self.ms:.3g} ms, {self.error:.1e} from float32"
        return said if self.fits else f"{said}, more than the {BOUNDS['bf16']:g} that is allowed"


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """What was chosen for one component of a bundle.

    Attributes:
        graph: Its name.
        engine: Name of the engine.
        trials: All that was measured.
    """

    graph: str
    engine: str
    trials: tuple[Trial, ...]

    @property
    def reason(self) -> str:
        """Why, in one sentence."""
        fitting = [trial for trial in self.trials if trial.fits]
        if len(fitting) < 2:
            return "it is the only one that runs it within the bound"
        times = {trial.engine: trial.ms or 0.0 for trial in fitting}
        others = min(ms for engine, ms in times.items() if engine != self.engine)
        ratio = others / times[self.engine]
        return (
            f"{ratio:.2f} times as fast as the next" if ratio >= CLEARLY else "as fast as the others, and the plainer"
        )


def chosen(graph: str, trials: Sequence[Trial]) -> Choice:
    """The fastest trial that fits; the first of those that are as fast.

    Raises:
        BackendError: None fits.
    """
    fitting = [trial for trial in trials if trial.fits]
    if not fitting:
        raise BackendError(f"no engine of the CPU runs {graph}: {'; '.join(map(str, trials))}")
    best = fitting[0]
    for trial in fitting[1:]:
        if (best.ms or 0.0) > CLEARLY * (trial.ms or 0.0):
            best = trial
    return Choice(graph=graph, engine=best.engine, trials=tuple(trials))


def recalled(bundle: Bundle, graph: str, threads: int, names: Sequence[str]) -> Choice | None:
    """What was chosen on an earlier day; None if nothing was, or if it cannot be read."""
    with suppress(JsonError):
        return read_json(_note(bundle, graph, threads, names), Choice)
    return None


def remembered(bundle: Bundle, graph: str, threads: int, names: Sequence[str], trials: Sequence[Trial]) -> Choice:
    """Choose, and write it down.

    Raises:
        BackendError: No engine fits.
    """
    made = chosen(graph, trials)
    with suppress(OSError):  # a home that one may only read: measured again at the next start
        write_whole(_note(bundle, graph, threads, names), msgspec.json.encode(made))
    return made


def forgotten(bundle: Bundle, graph: str, threads: int, names: Sequence[str]) -> None:
    """Remove what was chosen, where that is written down."""
    _note(bundle, graph, threads, names).unlink(missing_ok=True)


def _note(bundle: Bundle, graph: str, threads: int, names: Sequence[str]) -> Path:
    """File of a choice: it belongs to the graph, the machine's processor, the number of threads and the versions."""
    entry = bundle.manifest.graphs[graph]
    known = [(name, _version(name)) for name in names]
    said = repr((entry.key, sorted(entry.sha256.items()), known, threads, cpus(), cpu_name()))
    return paths.engines() / "auto" / f"{hashlib.sha256(said.encode()).hexdigest()[:32]}.json"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
