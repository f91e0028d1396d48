"""Who is on the device: the lanes, how many rows each may have, and which of them goes next."""

from collections.abc import Callable, Mapping, Sequence
from math import inf

from lssgen.errors import BackendError
from lssgen.serving.lane import Lane
from lssgen.serving.memory import Scratch, fitting, lane_bytes
from lssgen.serving.model import Model
from lssgen.serving.options import Rank, ServerOptions
from lssgen.serving.status import LaneStats
from lssgen.serving.work import Crowd, Piece

Standing = Callable[[Lane], float]

STANDINGS: Mapping[Rank, Standing] = {
    "deadline": lambda lane: min((piece.job.deadline for piece in lane.pieces), default=inf),
    "share": lambda lane: lane.share,
    "age": lambda lane: min((piece.job.number for piece in lane.pieces), default=0),
}
"""Numbers that lanes are put in order by; the smallest goes first."""


class Lanes:
    """The lanes of a server.

    Args:
        options: Batches, order and patience.
        budget: Bytes that weights and buffers may take.

    Attributes:
        scratch: Memory that networks were seen to take while they run, by model.
    """

    def __init__(self, options: ServerOptions, budget: int) -> None:
        self.scratch: dict[str, Scratch] = {}
        self._budget = budget
        self._batches = options.batches
        self._standings = tuple(STANDINGS[rank] for rank in options.order)
        self._patience = options.patience
        self._lanes: dict[Crowd, Lane] = {}
        self._needs: dict[tuple[Crowd, int], int] = {}
        self._tight: set[tuple[Crowd, int]] = set()
        self._refused: set[tuple[Crowd, int]] = set()
        self._rows: dict[Piece, Lane] = {}

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def everybody(self) -> list[Piece]:
        """Every picture that has a row."""
        return list(self._rows)

    def of(self, piece: Piece) -> Lane | None:
        """The lane that a picture has a row in."""
        return self._rows.get(piece)

    def pieces(self, crowd: Crowd) -> list[Piece]:
        """Pictures of a crowd that have rows."""
        return self._lanes[crowd].pieces if crowd in self._lanes else []

    def uses(self, model: str) -> bool:
        """Whether any picture of a model has a row."""
        return any(lane.crowd.model == model for lane in self._rows.values())

    def need(self, model: Model, crowd: Crowd, batch: int) -> int:
        """Memory that so many pictures of a crowd take on the device."""
        key = (crowd, batch)
        if key not in self._needs:
            size = (crowd.height, crowd.width)
            self._needs[key] = lane_bytes(model.bundle.manifest, size, len(crowd.branches), batch)
        return self._needs[key] + self._scratch(crowd, batch)

    def picture_bytes(self, model: Model, size: tuple[int, int], branches: int) -> int:
        """Memory that the fewest pictures of a size that can be painted take on the device.

        Args:
            model: Which paints.
            size: (height, width) of the last stage in latent cells.
            branches: Guidance branches.
        """
        batch, seen = self._batches[0], self.scratch.get(model.name)
        scratch = seen.bytes(size, branches, batch) if seen else 0
        return lane_bytes(model.bundle.manifest, size, branches, batch) + scratch

    def most(self, model: Model, size: tuple[int, int], branches: int) -> int:
        """Pictures of a size that there is memory for, with nothing else on the device."""
        left = self._budget - model.bytes
        sizes = ((batch, lane_bytes(model.bundle.manifest, size, branches, batch)) for batch in self._batches)
        return max((batch for batch, need in sizes if need <= left), default=0)

    def room(self, model: Model, crowd: Crowd, loaded: int) -> int:
        """How many more pictures of a crowd may have rows.

        Args:
            model: The crowd's.
            crowd: Who asks.
            loaded: Memory of the weights.
        """
        taken = len(self.pieces(crowd))
        others = sum(self._buffers(lane.crowd, lane.batch) for lane in self._lanes.values() if lane.crowd != crowd)
        left = self._budget - loaded - others
        allowed = [batch for batch in self._batches if (crowd, batch) not in self._refused]
        fits = [batch for batch in allowed if self.need(model, crowd, batch) <= left]
        if not fits and not self._rows:
            return min(allowed, default=0)  # it was admitted as one that fits alone, so what is in the way is not there
        return max(fits, default=0) - taken

    def join(self, model: Model, crowd: Crowd, pieces: Sequence[Piece]) -> None:
        """Give rows to pictures that have entered their stage.

        Raises:
            EngineError: There is no room after all. Those who have rows keep them.
        """
        if crowd not in self._lanes:
            self._lanes[crowd] = Lane(crowd, model)
            self._lanes[crowd].share = min((lane.share for lane in set(self._rows.values())), default=0.0)
        batch = fitting(len(self.pieces(crowd)) + len(pieces), self._batches)
        self.need(model, crowd, batch)
        self._lanes[crowd].arrange(pieces, batch)
        self._rows.update((piece, self._lanes[crowd]) for piece in pieces)

    def refuse(self, crowd: Crowd, count: int) -> None:
        """Remember that buffers for so many pictures of a crowd could not be made, until others have gone.

        The fewest that can be painted are always tried.
        """
        least = max(fitting(count, self._batches), self._batches[0] + 1)
        self._refused.update((crowd, batch) for batch in self._batches if batch >= least)

    def tidy(self) -> None:
        """Give back rows that nobody takes."""
        for crowd, lane in list(self._lanes.items()):
            count = len(lane.pieces)
            smaller = fitting(count, self._batches)
            if not count:
                if lane.batch:  # else it never had any: there was no room, and still is none
                    self._refused.clear()
                    self._tight.clear()
                lane.let_go()
                del self._lanes[crowd]
            elif smaller < lane.batch and (crowd, smaller) not in self._tight:
                try:
                    lane.arrange((), smaller)
                except BackendError:  # no room beside the larger buffers, which do as well
                    self._tight.add((crowd, smaller))

    def leave(self, piece: Piece) -> None:
        """Take a picture's row; nothing of it is kept."""
        self._rows.pop(piece).leave(piece)

    def park(self, piece: Piece) -> None:
        """Take a picture's row; it can go on later."""
        self._rows.pop(piece).park(piece)

    def next(self) -> Lane | None:
        """Whose turn it is, of those with pictures: the first in order, or one that was passed over too often."""
        lanes = [lane for lane in self._lanes.values() if lane.pieces]
        if not lanes:
            return None
        impatient = [lane for lane in lanes if lane.passed >= self._patience]
        chosen = max(impatient, key=lambda lane: lane.passed) if impatient else min(lanes, key=self._standing)
        for lane in lanes:
            lane.passed = 0 if lane is chosen else lane.passed + 1
        return chosen

    def stats(self) -> tuple[LaneStats, ...]:
        """What the server says of them."""
        found: list[LaneStats] = []
        for lane in list(self._lanes.values()):
            crowd = lane.crowd
            pieces = lane.pieces
            if pieces:
                cell = pieces[0].job.plan.cell_px
                found.append(
                    LaneStats(
                        model=crowd.model,
                        height_px=crowd.height * cell,
                        width_px=crowd.width * cell,
                        branches=len(crowd.branches),
                        batch=lane.batch,
                        rows=len(pieces),
                    )
                )
        return tuple(found)

    def _buffers(self, crowd: Crowd, batch: int) -> int:
        return self._needs.get((crowd, batch), 0)

    def _scratch(self, crowd: Crowd, batch: int) -> int:
        seen = self.scratch.get(crowd.model)
        return seen.bytes((crowd.height, crowd.width), len(crowd.branches), batch) if seen else 0

    def _standing(self, lane: Lane) -> tuple[float, ...]:
        return tuple(standing(lane) for standing in self._standings)
