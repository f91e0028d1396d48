"""The LoRAs in the slots of a bundle: which ranks each has, and their factors on the device.

All pictures share the slots: one that is painted with a LoRA says how strong each of its ranks is, and one without says
0. So another LoRA of those that are there costs a picture a few numbers, and one that is not there yet a copy of its
factors, which takes the place of those that nobody uses.
"""

from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from lssgen.bundle import Bundle
from lssgen.engines.base import Backend, Buffer
from lssgen.errors import ModelError, PlanError
from lssgen.lora.asked import RunLora
from lssgen.lora.packed import Packed, Slots, pack
from lssgen.lora.said import CONFIG, places_of
from lssgen.manifest import Graph, LoraFactors

GRAPHS = ("step", "text")
"""Graphs that may have slots."""

KEEP_BYTES = 2**30
"""Host memory of the LoRAs that were read last; others are read again when they are asked for."""

Floats = NDArray[np.float32]

Stamp = tuple[tuple[str, int, int], ...]
"""Mark that tells a LoRA from another: place, size and time of change of each of its files."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA with the strengths that a run gives it.

    Attributes:
        path: Its file or folder.
        stamp: Mark that tells it from others; the same where only the strength differs.
        rank: Ranks that it takes.
        scales: Strength in every stage; one: in all of them.
    """

    path: Path
    stamp: Stamp
    rank: int
    scales: tuple[float, ...]

    def scale(self, stage: int) -> float:
        """Its strength in a stage."""
        return self.scales[stage if len(self.scales) > 1 else 0]


@dataclass(frozen=True, slots=True)
class TextLoras:
    """LoRAs that prompts are encoded with.

    Attributes:
        key: Mark that tells them and their strengths from others.
        factors: Function that gives the factors on the device.
        weights: (ranks,) strengths.
    """

    key: Hashable = ()
    factors: Callable[[], Buffer] | None = None
    weights: Floats | None = None


NO_LORAS = TextLoras()


class LoraBank:
    """The slots of a bundle.

    Reading may happen in any thread; `place`, `weights` and `buffer` belong to the one that has the device.

    Args:
        bundle: What has the slots, or none.
        backend: Where the factors lie.
        keep_bytes: Host memory of the LoRAs that are kept to be put in again.
    """

    def __init__(self, bundle: Bundle, backend: Backend, keep_bytes: int = KEEP_BYTES) -> None:
        graphs = bundle.manifest.graphs  # without a text encoder where prompts come encoded
        self._slots = {name: slots for name in GRAPHS if name in graphs and (slots := _slots(graphs[name]))}
        self._ranks = _ranks(bundle.manifest.graphs["step"])
        self._folder = bundle.folder
        self._backend = backend
        self._keep = keep_bytes
        self._read: OrderedDict[Stamp, Packed] = OrderedDict()
        self._lock = Lock()
        self._buffers: dict[str, Buffer] = {}
        self._rows: OrderedDict[Stamp, tuple[int, ...]] = OrderedDict()

    @property
    def ranks(self) -> int:
        """Number of ranks that there is room for; 0: the bundle has no slots."""
        return self._ranks

    @property
    def bytes(self) -> int:
        """Memory of all factors on the device."""
        return 4 * self.ranks * sum(slots.factors.columns for slots in self._slots.values())

    def buffer(self, graph: str) -> Buffer:
        """(ranks, columns) factors of a graph that has slots; zeros at first."""
        if graph not in self._buffers:
            shape = (self.ranks, self._slots[graph].factors.columns)
            self._buffers[graph] = self._backend.empty(shape, np.dtype(np.float32))
            self._buffers[graph].write(np.zeros(shape, np.float32))
        return self._buffers[graph]

    def heard(self, adapters: Sequence[Adapter]) -> TextLoras:
        """What encodes prompts with LoRAs that were placed, as strong as in the last stage."""
        if "text" not in self._slots:
            return NO_LORAS
        scales = tuple((one.stamp, one.scales[-1]) for one in adapters if any(one.scales))
        return TextLoras(key=scales, factors=lambda: self.buffer("text"), weights=self.weights(adapters, -1))

    def read(self, asked: Sequence[str], stages: int) -> tuple[Adapter, ...]:
        """The LoRAs of a run, seen to fit.

        Args:
            asked: Each as "FILE", "FILE:STRENGTH" or, by stage, "FILE:STRENGTH/STRENGTH".
            stages: Stages of the run.

        Raises:
            PlanError: The bundle has no slots, or one has strengths for other stages than the run's.
            ModelError: One does not fit, or all of them together have more ranks than there are.
        """
        if not asked:
            return ()
        if not self.ranks:
            raise PlanError(
                f"bundle {self._folder} has no slots for loras: export it with --lora-slots N --lora-rank R, or merge "
                "them into its weights: lssgen export --lora"
            )
        loras = [RunLora.from_text(text) for text in asked]
        for lora in loras:
            if len(lora.scales) not in (1, stages):
                raise PlanError(
                    f"loras: {lora} has {len(lora.scales)} strengths, and the run has {stages} stages; give one for "
                    "all of them, or one for each"
                )
        adapters = tuple(self._adapter(lora) for lora in loras)
        self._see_together(adapters)
        return adapters

    def place(self, adapters: Iterable[Adapter], in_use: Collection[Stamp] = ()) -> bool:
        """Put LoRAs into the slots, in the place of some that nobody uses; whether there was room.

        Args:
            adapters: As `read` gave them.
            in_use: Those that stay, whoever comes.

        Raises:
            ModelError: One is not there any more.
            BackendError: There is no memory for the slots.
        """
        wanted = {one.stamp: one for one in adapters if any(one.scales)}
        stay = wanted.keys() | set(in_use)
        new = [one for stamp, one in wanted.items() if stamp not in self._rows]
        held = sum(len(rows) for stamp, rows in self._rows.items() if stamp in stay)
        if held + sum(one.rank for one in new) > self.ranks:
            return False
        for stamp in wanted.keys() & self._rows.keys():
            self._rows.move_to_end(stamp)
        for one in new:
            self._put_in(one, stay)
        return True

    def weights(self, adapters: Iterable[Adapter], stage: int) -> Floats:
        """(ranks,) strengths of a picture in a stage, for LoRAs that were placed."""
        found = np.zeros(self.ranks, np.float32)
        for one in adapters:
            if any(one.scales):
                # Added, and not set: a LoRA may be asked for twice.
                found[list(self._rows[one.stamp])] += np.float32(one.scale(stage))
        return found

    def close(self) -> None:
        """Free what is on the device; LoRAs are put in again when they are asked for."""
        self._rows.clear()
        self._buffers.clear()

    def _adapter(self, lora: RunLora) -> Adapter:
        stamp = _stamp(lora.path)
        return Adapter(lora.path, stamp, self._packed(lora.path, stamp).rank, lora.scales)

    def _packed(self, path: Path, stamp: Stamp) -> Packed:
        with self._lock:
            found = self._read.get(stamp)
        if found is None:
            # Without the lock, which the thread that has the device would wait for: files are large.
            found = pack(path, self._slots, self.ranks)
            if _stamp(path) != stamp:
                raise ModelError(f"{path} was changed while a run used it; start the run again")
        with self._lock:
            self._read[stamp] = found
            self._read.move_to_end(stamp)
            while len(self._read) > 1 and sum(one.bytes for one in self._read.values()) > self._keep:
                self._read.popitem(last=False)
        return found

    def _see_together(self, adapters: Sequence[Adapter]) -> None:
        ranks = {one.stamp: one.rank for one in adapters}
        if sum(ranks.values()) > self.ranks:
            each = ", ".join(f"{one.path.name} of rank {one.rank}" for one in adapters)
            raise ModelError(
                f"loras {each} have rank {sum(ranks.values())} together, and the slots of bundle {self._folder} have "
                f"room for {self.ranks}: use fewer, or export with more of them (--lora-slots N --lora-rank R)"
            )

    def _put_in(self, one: Adapter, stay: Collection[Stamp]) -> None:
        packed = self._packed(one.path, one.stamp)
        idle = [stamp for stamp in self._rows if stamp not in stay]
        while len(free := self._free()) < one.rank:
            del self._rows[idle.pop(0)]  # the least recently used
        rows = tuple(free[: one.rank])
        # Neighbouring rows lie behind each other, and go in one copy.
        for _, run in groupby(enumerate(rows), lambda pair: pair[1] - pair[0]):
            places = list(run)
            (first, row), last = places[0], places[-1][0]
            for graph, slots in self._slots.items():
                self.buffer(graph).write_part(row * slots.factors.columns, packed.rows[graph][first : last + 1])
        self._rows[one.stamp] = rows

    def _free(self) -> list[int]:
        taken = {row for rows in self._rows.values() for row in rows}
        return [row for row in range(self.ranks) if row not in taken]


def _slots(graph: Graph) -> Slots | None:
    """Room for LoRAs in a graph; None: it has none."""
    found = [feed for feed in graph.feeds.values() if isinstance(feed, LoraFactors)]
    return Slots(found[0], graph.precision) if found else None


def _ranks(graph: Graph) -> int:
    """Number of ranks that a graph has room for."""
    found = [port for port in graph.inputs if isinstance(graph.feeds.get(port.name), LoraFactors)]
    return int(found[0].shape[0]) if found else 0


def _stamp(path: Path) -> Stamp:
    # What PEFT says beside the tensors decides their strength.
    beside = [file for place in places_of(path) for file in (place.path, place.path.parent / CONFIG)]
    try:
        files = [(file, file.stat()) for file in beside if file.is_file()]
    except OSError as error:  # it goes at this moment
        raise ModelError(f"{path} cannot be read as a LoRA: {error.strerror}") from error
    return tuple((str(file.resolve()), found.st_size, found.st_mtime_ns) for file, found in files)
