"""lssgen verify: compare every file of a bundle with what was exported."""

import argparse
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from lssgen.bundle import Bundle, files, read_manifest
from lssgen.commands.common import run
from lssgen.commands.parser import Parser
from lssgen.errors import BundleError
from lssgen.paths import find_bundle
from lssgen.progress import followed
from lssgen.verification import states

EXAMPLES = ("bundles/sd3", "demo")

_LOG = logging.getLogger("lssgen")


def build_parser(prog: str = "lssgen-verify") -> Parser:
    parser = Parser("verify", prog, "BUNDLE", EXAMPLES)
    parser.description = (
        f"{parser.description}\nReads all of it, tokenizers and the engines in its folder too. Status 1 where a file "
        "is damaged or missing."
    )
    parser.add_argument(
        "bundle", metavar="BUNDLE", help="folder of a bundle, or name of one below LSSGEN_HOME; required"
    )
    return parser


def main(argv: Sequence[str] | None = None, prog: str = "lssgen-verify") -> int:
    args = build_parser(prog).parse_args(argv)
    return run(prog, lambda: _verify(args))


def _verify(args: argparse.Namespace) -> None:
    """Print what every file is.

    Raises:
        BundleError: Some are not what they should be; says what to do.
    """
    folder = find_bundle(args.bundle)
    # Not read_bundle, which raises at the first file that is missing: all of them are to be told.
    bundle = Bundle(folder, read_manifest(folder))
    wrong: list[str] = []
    for name, state in _files(bundle):
        print(f"{state:10}  {name}", flush=True)
        if state not in ("whole", "unknown"):
            wrong.append(f"{name} is {state}")
    engines = dict(_engines(folder))
    for name, reason in engines.items():
        print(f"{'damaged' if reason else 'whole':10}  engines/{name}")
    advice: list[str] = []
    if wrong:
        advice.append(
            f"{'; '.join(wrong)}: run the same lssgen-export again, which makes anew what is not whole, or copy the "
            "bundle again from where it is"
        )
    if faults := [f"engines/{name} {reason}" for name, reason in engines.items() if reason]:
        advice.append(f"{'; '.join(faults)}: remove these folders, and what needs them builds them again")
    if advice:
        raise BundleError(f"bundle {folder} is not what was exported: {'; '.join(advice)}")


def _files(bundle: Bundle) -> Iterator[tuple[str, str]]:
    """Every file of the bundle and its state, with a line now and then that says how long it takes."""
    paths = [bundle.path(name) for name in files(bundle.manifest)]
    total, done = sum(path.stat().st_size for path in paths if path.is_file()), 0
    with followed(_LOG.info) as follower:
        follower.at(0, "comparing")
        for name, state, size in states(bundle):
            done += size
            follower.at(done / max(total, 1), f"compared {done / 1e9:.1f} of {total / 1e9:.1f} GB")
            yield name, state


def _engines(folder: Path) -> Iterator[tuple[str, str]]:
    """The engines that lie in the bundle, and what is wrong with each; "" of those that are what was built."""
    from lssgen.engines.trt.cache import Cache

    cache = Cache(folder / "engines")
    faults = {fault.key: fault.reason for fault in cache.faults()}
    yield from ({entry.key: "" for entry in cache.entries()} | faults).items()
