"""What a user may choose about a backend, whichever it is."""

from dataclasses import dataclass, field
from pathlib import Path

from lssgen import paths
from lssgen.engines.demand import Demand
from lssgen.engines.trt.compiler import BuildOptions
from lssgen.engines.trt.report import Bounds


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """How graphs are run, and compiled where that comes first. A backend takes what it has a use for.

    Attributes:
        threads: CPU threads of one operator; 0 leaves it to the backend.
        device_id: Which GPU.
        low_memory: Keep the weights of one large network at a time: loaded when it runs, freed when another one does.
        engines: Folder of compiled engines.
        demand: Sizes to compile for.
        build: What else changes a compiled engine.
        bounds: What a compiled engine may be.
    """

    threads: int = 0
    device_id: int = 0
    low_memory: bool = False
    engines: Path = field(default_factory=paths.engines)
    demand: Demand = field(default_factory=Demand)
    build: BuildOptions = field(default_factory=BuildOptions)
    bounds: Bounds = field(default_factory=Bounds)
