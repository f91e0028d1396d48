"""Pictures that wait for a row: in the order of their rank, and none of them for ever."""

from bisect import bisect_left, insort
from collections.abc import Iterator

from lssgen.serving.work import Crowd, Piece


class Waiting:
    """Pictures that wait for the rows of one crowd.

    Args:
        patience: Times that the oldest may be passed over before it comes first.

    Attributes:
        short: Times that there was no memory for any of them, while others went on.
    """

    def __init__(self, patience: int) -> None:
        self._patience = patience
        self._ranked: list[Piece] = []
        self._passed = 0
        self.short = 0

    def __len__(self) -> int:
        return len(self._ranked)

    def __iter__(self) -> Iterator[Piece]:
        return iter(self._ranked)

    def add(self, piece: Piece) -> None:
        """A picture comes."""
        insort(self._ranked, piece, key=_rank)

    def remove(self, piece: Piece) -> None:
        """A picture goes elsewhere."""
        at = bisect_left(self._ranked, piece.rank, key=_rank)
        assert self._ranked[at] is piece, "ranks do not change, and no two are equal"
        del self._ranked[at]

    def first(self) -> Piece:
        """Whose turn it is."""
        return self._oldest() if self._passed >= self._patience else self._ranked[0]

    def pop(self) -> Piece:
        """Take out whose turn it is."""
        chosen, oldest = self.first(), self._oldest()
        self._passed = 0 if chosen is oldest else self._passed + 1
        self.remove(chosen)
        return chosen

    def _oldest(self) -> Piece:
        return min(self._ranked, key=_age)


class Queues:
    """Everything that waits, by crowd.

    Args:
        patience: As for `Waiting`.
    """

    def __init__(self, patience: int) -> None:
        self._patience = patience
        self._crowds: dict[Crowd, Waiting] = {}

    def __len__(self) -> int:
        return sum(map(len, self._crowds.values()))

    def __iter__(self) -> Iterator[Piece]:
        return (piece for waiting in self._crowds.values() for piece in waiting)

    def add(self, piece: Piece) -> None:
        """A picture comes."""
        self._crowds.setdefault(piece.crowd, Waiting(self._patience)).add(piece)

    def remove(self, piece: Piece) -> None:
        """A picture goes."""
        self._crowds[piece.crowd].remove(piece)
        self._tidy(piece.crowd)

    def by_rank(self) -> list[tuple[Crowd, Waiting]]:
        """The crowds: those that found no memory too often, then that with the picture whose turn it is."""
        return sorted(self._crowds.items(), key=lambda item: (item[1].short < self._patience, item[1].first().rank))

    def pop(self, crowd: Crowd) -> Piece:
        """Take out whose turn it is in a crowd."""
        piece = self._crowds[crowd].pop()
        self._tidy(crowd)
        return piece

    def _tidy(self, crowd: Crowd) -> None:
        if not self._crowds[crowd]:
            del self._crowds[crowd]


def _rank(piece: Piece) -> tuple[float, int, int]:
    return piece.rank


def _age(piece: Piece) -> tuple[int, int]:
    return piece.job.number, piece.index
