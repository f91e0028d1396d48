"""How a build tells how far it is."""

import logging
from collections.abc import Callable, Generator
from contextlib import contextmanager

from tqdm import tqdm

from lssgen.progress import followed

_LOG = logging.getLogger("lssgen")

Tell = Callable[[str, str, float], None]
"""Called with the graph, the phase of its build and the share of it that is done, from 0 to 1. What it raises ends the
build."""


def quiet(graph: str, phase: str, share: float) -> None:
    """A `Tell` that does nothing."""
    del graph, phase, share


@contextmanager
def progress_bar() -> Generator[Tell]:
    """A `Tell` that shows a bar on a terminal, and else lets a line be logged now and then."""
    with (
        tqdm(total=100, disable=None, leave=False, bar_format="{desc} {percentage:3.0f} % |{bar}|") as bar,
        followed(_LOG.info if bar.disable else _unheard) as follower,
    ):

        def tell(graph: str, phase: str, share: float) -> None:
            where = f"building {graph}: {phase}"
            bar.set_description_str(where, refresh=False)
            bar.update(100 * share - bar.n)
            follower.at(share, where)

        yield tell


def _unheard(line: str) -> None:
    del line
