"""A bundle's own autoencoder and transitions, as `lssgen.calibration.levels` measures them."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from lssgen.bundle import Bundle
from lssgen.calibration.levels import Operator
from lssgen.engines.base import Backend, Engines
from lssgen.engines.demand import Demand
from lssgen.errors import CalibrationError
from lssgen.manifest import Text
from lssgen.plan.facts import SPACES, ScalingSpace
from lssgen.plan.table import Stage, Step
from lssgen.plan.transitions import SIDES
from lssgen.ports import Array
from lssgen.runtime.workspace import Geometry, Workspace

_STEP = Step(label=0.0, sigma=0.0, next_sigma=0.0, keep=1.0, blend=(0.0,))


class BundleSpace:
    """The graphs of a bundle, in an engine.

    Args:
        bundle: The bundle.
        backend: Where its graphs run.
        crop_px: Side of the pictures, at whose size and half of it they are compiled.

    Raises:
        CalibrationError: The bundle has no transition, or none that starts from pictures.
        EngineError: A graph cannot be opened.
    """

    def __init__(self, bundle: Bundle, backend: Backend, crop_px: int) -> None:
        graphs = bundle.manifest.graphs
        self._spaces: tuple[ScalingSpace, ...] = tuple(space for space in SPACES if f"transition_{space}" in graphs)
        if "encode" not in graphs or not self._spaces:
            raise CalibrationError(f"{bundle.folder} has no encoder or no transition to measure; export it again")
        self._bundle, self._backend = bundle, backend
        self._cells = crop_px // self.cell_px
        self._engines: Engines = backend.open(
            bundle,
            Demand(
                graphs=("encode", *(f"transition_{space}" for space in self._spaces)),
                resolutions=((crop_px // SIDES, crop_px // SIDES), (crop_px, crop_px)),
            ),
        )
        self._spaces_at_work = {space: self._workspace(space) for space in self._spaces}

    @property
    def name(self) -> str:
        return self._bundle.folder.name

    @property
    def identity(self) -> str:
        graphs = self._bundle.manifest.graphs
        return " ".join(graphs[name].key for name in ("encode", *(f"transition_{space}" for space in self._spaces)))

    @property
    def cell_px(self) -> int:
        return self._bundle.manifest.facts.cell_px

    @property
    def operators(self) -> Mapping[ScalingSpace, Operator]:
        return {space: lambda latent, space=space: self._enlarged(space, latent) for space in self._spaces}

    def encode(self, picture: NDArray[np.uint8]) -> Array:
        stage = 1 if picture.shape[0] == self._cells * self.cell_px else 0
        return self._spaces_at_work[self._spaces[0]].encode(stage, picture)

    def close(self) -> None:
        """Free the engines."""
        self._engines.close()

    def _enlarged(self, space: ScalingSpace, latent: Array) -> Array:
        at_work = self._spaces_at_work[space]
        at_work.latent(0, 0).write(latent[None])
        clean = self._stage
        at_work.transition(1, 0, np.asarray([at_work.mix(clean)], np.float32))()
        return at_work.latent(1, 0).read()[0]

    @property
    def _stage(self) -> Stage:
        """A stage that starts without noise: of a state that holds none, its gain is that of a clean latent."""
        return Stage(
            height=self._cells,
            width=self._cells,
            steps=(_STEP,),
            schedule_steps=1,
            image=1.0,
            noise=0.0,
            gain=float(SIDES),
        )

    def _workspace(self, space: ScalingSpace) -> Workspace:
        manifest = self._bundle.manifest
        text = tuple(
            (
                feed.output,
                tuple(manifest.token_axes.get(axis, 1) if isinstance(axis, str) else axis for axis in port.shape[2:]),
            )
            for port in manifest.graphs["step"].inputs
            if isinstance(feed := manifest.graphs["step"].feeds.get(port.name), Text)
        )
        half = self._cells // SIDES
        sizes = ((half, half), (self._cells, self._cells))
        geometry = Geometry(sizes=sizes, batch=1, text=text, scaling_space=space)
        return Workspace(manifest, self._backend, self._engines, geometry)
