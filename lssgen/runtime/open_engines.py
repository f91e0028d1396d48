"""The engines of a bundle, opened by the first run that needs them and kept until they are closed."""

from lssgen.bundle import Bundle
from lssgen.bundle import verify as verify_bundle
from lssgen.engines.base import Backend, Engines
from lssgen.engines.demand import Demand
from lssgen.errors import EngineError


class OpenEngines:
    """Remembers what the engines of a bundle hold, so that what was met is not worked out again.

    Attributes:
        engines: The open engines; None before the first demand, and after `close`.
    """

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        self._bundle = bundle
        self._backend = backend
        self.engines: Engines | None = None
        # What was met stays met until the engines are closed: no batch works out all profiles again.
        self._met: set[Demand] = set()

    def holds(self, demand: Demand) -> bool:
        """Whether `ready` has nothing to do."""
        return self.engines is not None and demand in self._met

    def ready(self, demand: Demand) -> Engines:
        """The engines, which hold what is demanded: loaded, and built where that is missing.

        Raises:
            BundleError, EngineError: They cannot be loaded.
        """
        try:
            if self.engines is None:
                self.engines = self._backend.open(self._bundle, demand)
            elif demand not in self._met:
                self.engines.require(demand)
        except EngineError:
            # A hash of every file costs seconds, so it waits until something has failed.
            verify_bundle(self._bundle)  # raises if the reason is a file that is not what was exported
            raise
        self._met.add(demand)
        return self.engines

    def close(self) -> None:
        """Free them; the next demand opens them again."""
        self._met.clear()
        if self.engines is not None:
            self.engines.close()
        self.engines = None
