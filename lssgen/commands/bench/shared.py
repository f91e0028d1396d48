"""What the command and its actions share: the bundle, the engine, options of runs, and where a measurement is."""

import argparse
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from lssgen.bench.cases import PROMPT
from lssgen.bench.sides import value_of
from lssgen.bundle import MANIFEST, Bundle, read_bundle, sha256_of
from lssgen.commands.demo import demo_bundle
from lssgen.commands.engine_options import add_engine_options, engine_words
from lssgen.commands.parser import Parser
from lssgen.commands.values import integer, within
from lssgen.engines.base import Backend
from lssgen.engines.registry import default_engine, open_backend
from lssgen.errors import BenchError
from lssgen.paths import find_bundle
from lssgen.progress import followed
from lssgen.runtime.options import Options, refuse_unknown
from lssgen.verification import see_whole


def add_bundle(parser: Parser) -> None:
    """The bundle, its engine, and options of its runs."""
    parser.add_argument(
        "bundle",
        nargs="?",
        default="demo",
        metavar="BUNDLE",
        help="folder that lssgen-export wrote, or name of one below LSSGEN_HOME; default: the demo model",
    )
    add_run_options(parser)
    add_engine_options(parser, default=default_engine(), note="where to run")


def add_run_options(parser: Parser) -> None:
    """What every run is given."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        type=named_value,
        metavar="NAME=VALUE",
        help="option of the runs, in the words of lssgen.load(...)(prompt, NAME=VALUE); may be repeated; default: none",
    )
    parser.add_argument(
        "--prompt", default=PROMPT, metavar="TEXT", help="words of the prompts, in another order each time; "
        "default: %(default)s",
    )  # fmt: skip
    parser.add_argument("--quiet", action="store_true", help="no progress, and warnings only")


def exit_status(text: str) -> int:
    """A number that a process may end with."""
    return within(0, 255, integer)(text)


def named_value(text: str) -> tuple[str, Any]:
    """Name and value of "start_sigma=0.5"."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text[:60]!r} is not NAME=VALUE, such as start_sigma=0.5")
    return name.replace("-", "_"), value_of(value)


def run_options(args: argparse.Namespace) -> dict[str, Any]:
    """Options that `--set` has given.

    Raises:
        BenchError: One of them is said twice.
        PlanError: One of them does not exist.
    """
    found = dict(args.set)
    if len(found) < len(args.set):
        raise BenchError("--set says one of its options twice; say each once")
    refuse_unknown(found, Options.__annotations__)
    return found


def bundle_of(args: argparse.Namespace, prog: str) -> Bundle:
    """The bundle that was named, whole."""
    folder = find_bundle(args.bundle)
    if args.bundle == "demo" and not (folder / MANIFEST).exists():
        folder = demo_bundle(prog)
    bundle = read_bundle(folder)
    see_whole(bundle, "once")
    return bundle


def identity(bundle: Bundle) -> dict[str, str]:
    """What a result says of its bundle."""
    return {
        "name": bundle.manifest.facts.name,
        "folder": str(bundle.folder.resolve()),
        "manifest_sha256": sha256_of(bundle.folder / MANIFEST),
    }


def opener(parser: Parser, args: argparse.Namespace) -> Callable[[], Backend]:
    """A function that makes the chosen engine's backend."""
    words = engine_words(parser, args)
    return lambda: open_backend(args.engine, **words)


class Watch:
    """Shows how far a measurement is: a bar on a terminal, else a line now and then."""

    def __init__(self, bar: Any, tell: Callable[[float, str], None]) -> None:
        self._bar = bar
        self._tell = tell

    def at(self, what: str, done: int, total: int) -> None:
        """Hear where it is."""
        self._bar.total = total
        self._bar.set_description_str(what, refresh=False)
        self._bar.n = done
        self._bar.refresh()
        self._tell(done / max(total, 1), f"{what}: {done} of {total}")


@contextmanager
def watched(args: argparse.Namespace, say: Callable[[str], object]) -> Generator[Watch]:
    """What shows where a measurement is. It is told between runs, never during one."""
    with tqdm(unit="run", disable=True if args.quiet else None) as bar:
        if bar.disable and not args.quiet:
            with followed(say) as follower:
                yield Watch(bar, follower.at)
        else:
            yield Watch(bar, _unheard)


def _unheard(share: float, where: str) -> None:
    del share, where
