"""A bundle on the server's device: read once, its engines open while there is work for them and room."""

from collections.abc import Sequence
from dataclasses import replace
from time import monotonic

from lssgen.bundle import MANIFEST, Bundle
from lssgen.engines.base import Backend, Engines
from lssgen.engines.demand import Demand
from lssgen.manifest import LoraFactors
from lssgen.runtime.advice import Advice, advice, known_of
from lssgen.runtime.conditioning import Conditioner
from lssgen.runtime.demand import demand_of
from lssgen.runtime.loras import LoraBank
from lssgen.runtime.open_engines import OpenEngines
from lssgen.runtime.options import Options, Request
from lssgen.runtime.text import TextEncoder
from lssgen.runtime.workspace import Geometry, Lent, Workspace
from lssgen.runtime.workspaces import Workspaces
from lssgen.schedules import Search, read_searches
from lssgen.serving.plans import Plans
from lssgen.serving.status import ModelInfo
from lssgen.serving.times import StepTimes


class Model:
    """A bundle that a server paints with.

    Attributes:
        name: Name that requests ask for.
        bundle: Its graphs and manifest.
        words: Encoder of what its branches hear.
        plans: Plans that were made for it.
        times: Seconds that its engine calls take.
        bytes: Size of its graphs' files, which is hardly more than that of its weights, and of its slots for LoRAs.
        loras: LoRAs in its slots.
        used: Moment at which it was last used.
    """

    def __init__(self, name: str, bundle: Bundle, backend: Backend, *, keep_bytes: int) -> None:
        self.name = name
        self.bundle = bundle
        self.words = Conditioner(bundle.manifest, TextEncoder(bundle, backend, tell=_leave))
        self.plans = Plans(bundle.manifest.history)
        self.times = StepTimes(bundle.manifest.facts.cost)
        self.bytes = sum(bundle.stored_bytes(graph) for graph in bundle.manifest.graphs)
        self.used = 0.0
        self.loras = LoraBank(bundle, backend)
        self.bytes += self.loras.bytes
        self._searches = {(one.height, one.width): one for one in read_searches(bundle)}
        self._backend = backend
        self._measured = known_of(bundle, backend)
        self._open = OpenEngines(bundle, backend)
        self._workspaces = Workspaces(self._make, keep_bytes)

    def advice(self, options: Options) -> Advice:
        """What was measured of the bundle says about a run, as it does where the same run is alone.

        Raises:
            PlanError: The run cannot be carried out as asked.
        """
        return advice(self.bundle, self._measured, options)

    @property
    def loaded(self) -> bool:
        return self._open.engines is not None

    @property
    def buffer_bytes(self) -> int:
        """Memory of its buffers."""
        return self._workspaces.bytes

    @property
    def engines(self) -> Engines:
        assert self._open.engines is not None, "a model is made ready before it works"
        return self._open.engines

    def searched(self, request: Request) -> Search | None:
        """The schedules that were tried for the size of a run."""
        return self._searches.get((request.plan.height_px, request.plan.width_px))

    def demand(self, request: Request, batches: Sequence[int], *, starts: bool) -> Demand:
        """What a request needs of the engines, for any number of pictures that share a call."""
        own = demand_of(self.bundle.manifest, request, prompts=1, previews=True, starts=starts)
        return replace(own, batches=tuple(batches))

    def holds(self, demand: Demand) -> bool:
        """Whether `require` has nothing to do."""
        return self._open.holds(demand)

    def require(self, demand: Demand) -> None:
        """Load, and build where that is missing, what is demanded.

        Raises:
            BundleError, EngineError: It cannot be loaded.
        """
        self.used = monotonic()
        self._open.ready(demand)

    def workspace(self, geometry: Geometry) -> Workspace:
        """Buffers of a geometry."""
        return self._workspaces.get(geometry)

    def clear(self) -> None:
        """Let go of all buffers that no lane holds."""
        self._workspaces.clear()

    def close(self) -> None:
        """Free engines and buffers; it is loaded again when it is asked for."""
        self._workspaces.clear()
        self.loras.close()
        self._open.close()

    def info(self, aliases: Sequence[str]) -> ModelInfo:
        """What the server says of it."""
        manifest = self.bundle.manifest
        facts = manifest.facts
        return ModelInfo(
            name=self.name,
            aliases=tuple(aliases),
            folder=str(self.bundle.folder),
            family=manifest.family,
            created=int((self.bundle.folder / MANIFEST).stat().st_mtime),
            loaded=self.loaded,
            height=facts.defaults.height,
            width=facts.defaults.width,
            multiple=facts.cell_px * facts.align,
            starts="encode" in manifest.graphs,
            stages=any(name.startswith("transition_") for name in manifest.graphs),
            bytes=self.bytes,
        )

    def _make(self, geometry: Geometry) -> Workspace:
        lent: Lent = {LoraFactors: lambda: self.loras.buffer("step")}
        return Workspace(self.bundle.manifest, self._backend, self.engines, geometry, lent)


def _leave(_: str) -> None:
    """What a prompt loses is told to its caller when the request comes, not again when it is encoded."""
