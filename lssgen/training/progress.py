"""How far something long is: a bar on a terminal; into a file or a log, a line now and then."""

from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext

from tqdm import tqdm

from lssgen.progress import Say
from lssgen.progress import followed as watched


@contextmanager
def followed(what: str, *, total: int, done: int, say: Say) -> Generator[Callable[[str], None]]:
    """Give what is to be called after every item, with what is worth knowing of it.

    Args:
        what: Name of the work.
        total, done: Number of items, and of those that were done before.
        say: Hears the lines where there is no terminal.
    """
    at = done
    with (
        tqdm(total=total, initial=done, desc=what, disable=None) as bar,
        watched(say) if bar.disable else nullcontext() as follower,
    ):

        def show(facts: str) -> None:
            if follower is not None:
                follower.at(at / max(total, 1), f"{what} {at} of {total}" + (f", {facts}" if facts else ""))

        def tell(facts: str) -> None:
            nonlocal at
            at += 1
            bar.set_postfix_str(facts, refresh=False)
            bar.update()
            show(facts)

        show("")
        yield tell
