"""Which engine was chosen for a component at each size, why, and where that is remembered."""

import hashlib
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from math import log, prod
from pathlib import Path

import msgspec

from lssgen import paths
from lssgen.bundle import Bundle
from lssgen.durable import locked, write_whole
from lssgen.engines.cpu.probe import BOUNDS
from lssgen.engines.demand import Size
from lssgen.errors import BackendError
from lssgen.jsons import JsonError, read_json
from lssgen.machine import cpu_name, cpus

CLEARLY = 1.03
"""Times that another engine must be faster than the preferred one to take its place: below, it is noise."""

LARGE_BYTES = 2**31
"""Weights of a graph that is to be in memory once: compiled once for all sizes, and by one engine."""


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """An engine on one component.

    Attributes:
        engine: Its name.
        ms: Milliseconds of one call; the median. None where it cannot run it.
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


class SizeChoice(msgspec.Struct, frozen=True, kw_only=True):
    """What was chosen for one component at one size.

    Attributes:
        size_px: (height, width) of the picture in pixels; (0, 0) for a component that has no size.
        engine: Name of the engine.
        trials: All that was measured.
    """

    size_px: Size
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
        if self.engine not in times or CLEARLY * others < times[self.engine]:
            return "it is that of the largest size, so that its weights are in memory once"
        ratio = others / times[self.engine]
        return f"{ratio:.2f} times as fast as the next" if ratio >= CLEARLY else "as fast as the others"

    def __str__(self) -> str:
        return f"{self.engine} at {self.size_px[1]}x{self.size_px[0]}"


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """What was chosen for one component of a bundle.

    Attributes:
        graph: Its name.
        sizes: Choices by size, smallest first; at least one.
    """

    graph: str
    sizes: tuple[SizeChoice, ...]

    @property
    def engines(self) -> tuple[str, ...]:
        """Names of all engines that some size was given to; that of the largest first."""
        return tuple(dict.fromkeys(one.engine for one in reversed(self.sizes)))

    def engine_at(self, size_px: Size | None) -> str:
        """The engine for a picture size in pixels, (height, width): that of the nearest size that was measured."""
        if size_px is None:
            return self.sizes[-1].engine

        def distance(one: SizeChoice) -> float:
            return abs(log(max(prod(one.size_px), 1) / prod(size_px)))

        return min(self.sizes, key=distance).engine

    def alike(self) -> "Choice":
        """The same with one engine for all sizes, so that its weights are in memory once: the one of the largest size,
        if it is right at all of them."""

        def right(engine: str) -> bool:
            return all(trial.fits for one in self.sizes for trial in one.trials if trial.engine == engine)

        engine = next(filter(right, self.engines), self.engines[0])
        return Choice(graph=self.graph, sizes=tuple(msgspec.structs.replace(one, engine=engine) for one in self.sizes))

    def __str__(self) -> str:
        return self.engines[0] if len(self.engines) == 1 else ", ".join(map(str, self.sizes))


def chosen(graph: str, trials: Sequence[tuple[Size, Sequence[Trial]]]) -> Choice:
    """For each size the fastest trial that fits; of those that are as fast, the engine of the largest size.

    Args:
        graph: Name of the component.
        trials: Trials by size in pixels, smallest size first; of a size, the reference first.

    Raises:
        BackendError: None fits.
    """
    largest, smaller = trials[-1], trials[:-1]
    found = [_at_size(graph, *largest, preferred="")]
    for size, every in reversed(smaller):
        found.append(_at_size(graph, size, every, preferred=found[0].engine))
    return Choice(graph=graph, sizes=tuple(reversed(found)))


def _at_size(graph: str, size: Size, trials: Sequence[Trial], preferred: str) -> SizeChoice:
    fitting = [trial for trial in trials if trial.fits]
    if not fitting:
        raise BackendError(f"no engine of the CPU runs {graph}: {'; '.join(map(str, trials))}")
    best = next((trial for trial in fitting if trial.engine == preferred), fitting[0])
    for trial in fitting:
        if (best.ms or 0.0) > CLEARLY * (trial.ms or 0.0):
            best = trial
    return SizeChoice(size_px=size, engine=best.engine, trials=tuple(trials))


@contextmanager
def measuring(say: Callable[[str], object]) -> Generator[None]:
    """Alone on this machine: processes that measure at once disturb each other, and what they find stays for long.
    Where no lock can be made, nobody waits."""
    place = paths.engines() / "auto" / ".lock"
    with ExitStack() as stack:
        with suppress(OSError):
            try:
                stack.enter_context(locked(place, wait=False))
            except TimeoutError:  # filelock's is one
                say("another process measures engines; waiting for it")
                stack.enter_context(locked(place))
        yield


def recalled(bundle: Bundle, graph: str, threads: int, names: Sequence[str]) -> Choice | None:
    """What was chosen on an earlier day; None if nothing was, or if it cannot be read or be true."""
    with suppress(JsonError):
        found = read_json(_note(bundle, graph, threads, names), Choice)
        if found.graph == graph and found.sizes and set(found.engines) <= set(names):
            return found
    return None


def remembered(
    bundle: Bundle, threads: int, names: Sequence[str], made: Choice, tell: Callable[[str], object]
) -> Choice:
    """Write a choice down, and give it back; tells where that cannot be done."""
    note = _note(bundle, made.graph, threads, names)
    try:
        write_whole(note, msgspec.json.encode(made))
    except OSError as error:
        tell(
            f"what was measured cannot be kept in {note.parent} ({error.strerror}), so every start measures again; let "
            "LSSGEN_HOME name a folder that can be written, or name an engine"
        )
    return made


def forgotten(bundle: Bundle, graph: str, threads: int, names: Sequence[str]) -> None:
    """Remove what was chosen, where that is written down."""
    _note(bundle, graph, threads, names).unlink(missing_ok=True)


def _note(bundle: Bundle, graph: str, threads: int, names: Sequence[str]) -> Path:
    """File of a choice: it belongs to the graph, the machine's processor, the number of threads and the versions."""
    entry = bundle.manifest.graphs[graph]
    known = [(name, _version(name)) for name in names]
    said = repr(("by size", entry.key, sorted(entry.sha256.items()), known, threads, cpus(), cpu_name()))
    return paths.engines() / "auto" / f"{hashlib.sha256(said.encode()).hexdigest()[:32]}.json"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
