"""The workspaces of a pipeline: those of the last runs, bounded by memory."""

from collections import OrderedDict
from collections.abc import Callable

from lssgen.runtime.workspace import Geometry, Workspace


class Workspaces:
    """Keeps what runs of one geometry share, so that alternating sizes bind, and capture CUDA graphs, once each.

    Args:
        make: Makes the workspace of a geometry.
        most_bytes: Memory of the buffers that are kept. The workspace in use stays, however large it is.
    """

    def __init__(self, make: Callable[[Geometry], Workspace], most_bytes: int) -> None:
        self._make = make
        self._most = most_bytes
        self._kept: OrderedDict[Geometry, Workspace] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def bytes(self) -> int:
        """Memory of all buffers."""
        return sum(workspace.bytes for workspace in self._kept.values())

    def get(self, geometry: Geometry) -> Workspace:
        """The workspace of a geometry; those that were not used for longest make room for a new one."""
        if geometry not in self._kept:
            self.trim()
            self._kept[geometry] = self._make(geometry)
        self._kept.move_to_end(geometry)
        return self._kept[geometry]

    def trim(self) -> None:
        """Let go of workspaces, least recently used first, until the rest fits. Buffers are made while a run goes on,
        so this is called after it."""
        while len(self._kept) > 1 and self.bytes > self._most:
            self._kept.popitem(last=False)

    def keep_only(self, geometry: Geometry) -> bool:
        """Let go of all others, where a device has no room left; whether there were any."""
        others = [known for known in self._kept if known != geometry]
        for other in others:
            del self._kept[other]
        return bool(others)

    def clear(self) -> None:
        """Let go of everything."""
        self._kept.clear()
