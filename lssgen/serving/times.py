"""How long the device takes for what: measured while the server warms up and works, and kept for the next start."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import log
from pathlib import Path
from typing import Literal

import msgspec

from lssgen import paths
from lssgen.bundle import MANIFEST, Bundle, sha256_of
from lssgen.durable import write_whole
from lssgen.jsons import JsonError, read_json
from lssgen.plan import Plan
from lssgen.plan.facts import NetworkCost

Kind = Literal["step", "transition", "decode", "encode", "text"]

_NEW = 0.2
"""Weight of a new measurement: the mean follows a machine that becomes slower within some ten steps."""


@dataclass(frozen=True, slots=True)
class Call:
    """An engine call, as far as its duration goes.

    Attributes:
        kind: Graph that is called.
        height, width: Latent size in cells; of a transition, that which it leads to. 0 for text.
        branches: Guidance branches of a step; else 1.
        batch: Pictures in its buffers.
    """

    kind: Kind
    height: int = 0
    width: int = 0
    branches: int = 1
    batch: int = 1

    @property
    def cells(self) -> int:
        return self.height * self.width


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """A line of the file: a call and its seconds."""

    kind: Kind
    height: int
    width: int
    branches: int
    batch: int
    seconds: float


class StepTimes:
    """Mean seconds of engine calls, by what is called.

    One that was never made is thought of as the nearest of its kind that was, times what the arithmetic of the network
    says about the two.

    Args:
        cost: Arithmetic of the step's network.
    """

    def __init__(self, cost: NetworkCost) -> None:
        self._cost = cost
        self._known: dict[Call, float] = {}
        self._guessed: dict[Call, float] = {}

    def __len__(self) -> int:
        return len(self._known)

    def note(self, call: Call, seconds: float) -> None:
        """Learn from a measurement."""
        old = self._known.get(call)
        self._known[call] = seconds if old is None else old + _NEW * (seconds - old)
        self._guessed.clear()

    def learn(self, other: "StepTimes") -> None:
        """Learn everything that another model's calls take."""
        for call, seconds in list(other._known.items()):
            self.note(call, seconds)

    def seconds(self, call: Call) -> float | None:
        """Mean or likely seconds of a call; None where none of its kind was made yet."""
        if call in self._known:
            return self._known[call]
        guess = self._guessed.get(call)  # another thread may measure meanwhile, which forgets all guesses
        if guess is None:
            near = min(
                (known for known in list(self._known) if known.kind == call.kind),
                key=lambda known: abs(log(self._work(known) / self._work(call))),
                default=None,
            )
            if near is None:
                return None
            guess = self._known[near] * self._work(call) / self._work(near)
            self._guessed[call] = guess
        return guess

    def run(self, plan: Plan, batch: int, pictures: int, *, previews: bool = False) -> float | None:
        """Likely seconds of a run on a device with nothing else to do; None where no step was timed yet.

        Args:
            plan: The run.
            batch: Pictures in the buffers of its steps.
            pictures: Pictures that are decoded one by one.
            previews: Whether the picture of every stage is decoded.
        """
        total = self.seconds(Call("text")) or 0.0
        for index, stage in enumerate(plan.stages):
            for step in stage.steps:
                one = self.seconds(Call("step", stage.height, stage.width, len(step.guidance), batch))
                if one is None:
                    return None
                total += one
            if index:
                total += pictures * (self.seconds(Call("transition", stage.height, stage.width)) or 0.0)
            if previews or index == len(plan.stages) - 1:
                total += pictures * (self.seconds(Call("decode", stage.height, stage.width)) or 0.0)
        return total

    def lines(self) -> Iterator[Measured]:
        """What is known, for the file."""
        for call, seconds in self._known.items():
            yield Measured(
                kind=call.kind,
                height=call.height,
                width=call.width,
                branches=call.branches,
                batch=call.batch,
                seconds=seconds,
            )

    def _work(self, call: Call) -> float:
        if call.kind == "step":
            return max(self._cost.flops(call.cells) * call.branches * call.batch, 1.0)
        return max(float(call.cells * call.batch), 1.0)


def place_of(bundle: Bundle, backend: Mapping[str, object]) -> Path:
    """File that keeps the times of a bundle on a backend, as it describes itself on this machine."""
    said = f"{sha256_of(bundle.folder / MANIFEST)} {sorted((k, str(v)) for k, v in backend.items() if k in _DECIDES)}"
    return paths.home() / "serving" / f"{hashlib.sha256(said.encode()).hexdigest()[:32]}.json"


_DECIDES = ("backend", "version", "onnxruntime", "provider", "device", "threads", "low_memory", "tf32")
"""Facts that a backend tells of itself and that change how long it takes."""


def remembered(place: Path, cost: NetworkCost) -> StepTimes:
    """The times of an earlier server; none where the file is missing or cannot be read."""
    times = StepTimes(cost)
    with suppress(JsonError):
        for line in read_json(place, list[Measured]):
            times.note(Call(line.kind, line.height, line.width, line.branches, line.batch), line.seconds)
    return times


def remember(place: Path, times: StepTimes) -> None:
    """Keep the times for the next server; one that cannot write measures again, and nothing else."""
    with suppress(OSError):
        write_whole(place, msgspec.json.format(msgspec.json.encode(list(times.lines())), indent=1) + b"\n")
