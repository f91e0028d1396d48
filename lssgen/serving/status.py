"""What a server says of itself: its models, its state at a moment, and what it measures."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """A model of a server.

    Attributes:
        name: Name that a request asks for.
        aliases: Other names for it.
        folder: Bundle's folder; empty where it is yet to be made, of a LoRA.
        family: Record that the bundle was exported with.
        created: Unix time at which the bundle was written.
        loaded: True where its engines are open.
        height, width: Default picture size in pixels.
        multiple: Pixels of which every side is a multiple.
        starts: True where runs can start from a picture.
        stages: True where pictures can be painted in stages.
        bytes: Size of its graphs' files.
    """

    name: str
    aliases: tuple[str, ...]
    folder: str
    family: str
    created: int
    loaded: bool
    height: int
    width: int
    multiple: int
    starts: bool
    stages: bool
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneStats:
    """Pictures that share engine calls.

    Attributes:
        model: Its name.
        height_px, width_px: Picture size of the stage.
        branches: Guidance branches of a step.
        batch: Pictures that fit its buffers; `rows` of them are taken.
        rows: Pictures that are painted.
    """

    model: str
    height_px: int
    width_px: int
    branches: int
    batch: int
    rows: int


Phase = Literal["starting", "ready", "draining", "closed", "stuck", "broken"]
"""Place of a server in its life. Only "ready" is ready; all but "stuck", "broken" and "closed" are live."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """A server at a moment. Counts only grow.

    Attributes:
        phase: See `Phase`.
        waiting: Requests none of whose pictures was begun.
        running: Requests that are painted.
        waiting_pixels: Pixels of pictures that were not begun.
        drafts: Drafts that are kept.
        draft_bytes: Their memory.
        lanes: Pictures that are painted together at the moment.
        buffer_bytes: Memory of the buffers on the device.
        memory_bytes: Memory that weights and buffers may take.
        loaded_bytes: Weights of the models that are loaded.
        accepted, done, cancelled, failed: Requests.
        refused: Requests that were not taken, or not finished, by `RefusalCode`.
        pictures, pixels, steps: Work that was done; steps count pictures, not engine calls.
        calls: Engine calls of steps; `steps / calls` is the mean batch.
        previews: Previews and estimates that were decoded.
        nonfinite: Pictures that held NaN or infinity.
        busy_seconds: Time in engine calls.
    """

    phase: Phase
    waiting: int
    running: int
    waiting_pixels: int
    drafts: int
    draft_bytes: int
    lanes: tuple[LaneStats, ...]
    buffer_bytes: int
    memory_bytes: int
    loaded_bytes: int
    accepted: int
    done: int
    cancelled: int
    failed: int
    refused: Mapping[str, int]
    pictures: int
    pixels: int
    steps: int
    calls: int
    previews: int
    nonfinite: int
    busy_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """Something that was measured, for histograms.

    Attributes:
        kind: "step": an engine call of `rows` pictures in buffers for `batch`. "stage", "preview", "decode", "text",
            "transition", "load": as the spans. "queue": the wait of a request. "request": a whole one; `outcome` says
            how it ended.
        model: Name of the model.
        seconds: Duration.
        height_px, width_px: Picture size; 0 where it has none.
        rows, batch: Pictures in the call, and pictures that its buffers hold.
        outcome: A `State`, of a request that has ended; else "".
    """

    kind: Literal["step", "stage", "preview", "decode", "text", "encode", "transition", "load", "queue", "request"]
    model: str
    seconds: float
    height_px: int = 0
    width_px: int = 0
    rows: int = 1
    batch: int = 1
    outcome: str = ""


Observe = Callable[[Observation], None]
"""Called in the scheduler's thread; it must return at once."""
