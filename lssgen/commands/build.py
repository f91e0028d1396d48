"""lssgen build: the compiled engines of a bundle, made and looked after where the GPU is. Needs no torch."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lssgen import paths
from lssgen.bundle import Bundle, read_bundle
from lssgen.commands.build_options import BUILT, add_build_options, order_from_args
from lssgen.commands.common import run
from lssgen.commands.engine_options import add_engine_options, engine_words
from lssgen.commands.parser import Parser
from lssgen.commands.values import number, within
from lssgen.commands.verify_option import add_verify_option
from lssgen.engines.options import EngineOptions
from lssgen.errors import EngineError
from lssgen.paths import find_bundle
from lssgen.verification import see_whole

if TYPE_CHECKING:
    from lssgen.engines.trt.cache import Entry
    from lssgen.engines.trt.order import Order

EXAMPLES = (
    "bundles/sd3 --engine tensorrt-rtx --target sm89,sm120 --batch 1,4",
    "bundles/sd3 --check",
)
_DAYS, _MOST_DAYS = 30.0, 1_000_000
_LOOKING = {"bundle", "engine", "engine.engines", "list", "check", "prune", "verify"}

Places = Mapping[Path, Sequence["Entry"]]
"""Engines by the folder they lie in."""


def build_parser(prog: str = "lssgen-build") -> Parser:
    parser = Parser("build", prog, "[BUNDLE] [--engine ENGINE] [OPTION ...]", EXAMPLES)
    parser.add_argument(
        "bundle",
        nargs="?",
        metavar="BUNDLE",
        help="folder of a bundle, or name of one below LSSGEN_HOME; default: every bundle's engines, for --list, "
        "--check and --prune",
    )
    parser.add_argument("--list", action="store_true", help="print the engines that are there, longest unused first")
    parser.add_argument("--check", action="store_true", help="read every engine and compare it with its report")
    parser.add_argument(
        "--prune",
        type=within(0, _MOST_DAYS, number),
        nargs="?",
        const=_DAYS,
        metavar="DAYS",
        help=f"delete the engines that were not used for so long; default: none; without DAYS, {_DAYS:g}",
    )
    add_engine_options(parser, BUILT, note="what to build for; required to build", leave=("low_memory",))
    add_build_options(parser)
    add_verify_option(parser)
    return parser


def main(argv: Sequence[str] | None = None, prog: str = "lssgen-build") -> int:
    parser = build_parser(prog)
    args = parser.parse_args(argv)
    if args.list or args.check or args.prune is not None:
        if others := sorted(set(vars(args)) - _LOOKING):
            other = parser.spelling(others[0])
            parser.error(f"--list, --check and --prune take BUNDLE, --engine and --engines, and not {other}")
        return run(prog, lambda: _look_after(args))
    if args.bundle is None or args.engine is None:
        parser.error("BUNDLE and --engine are needed to build, or one of --list, --check and --prune")
    words = engine_words(parser, args)
    return run(prog, lambda: _build(args, words))


def _build(args: argparse.Namespace, words: EngineOptions) -> None:
    bundle = read_bundle(find_bundle(args.bundle))
    order = order_from_args(args, words)
    see_whole(bundle, args.verify)
    build(bundle, order)


def build(bundle: Bundle, order: "Order") -> None:
    """Build the engines of a bundle; a bar while they are built, a line for each, and what running them takes."""
    # Here, since --help should not wait for them.
    from lssgen.engines.memory import megabytes
    from lssgen.engines.trt.need import device_bytes
    from lssgen.engines.trt.order import build_engines
    from lssgen.engines.trt.progress import progress_bar

    with progress_bar() as tell:
        entries = build_engines(bundle, order, tell)
    reports = [entry.report for entry in entries.values()]
    for report in reports:
        print(report, file=sys.stderr)
        expected = sum(attention.expected for attention in report.unfused)
        if expected:
            nodes = ", ".join(attention.node for attention in report.unfused[:3])
            print(f"  {expected} attentions have no fused kernel for their type or head size: {nodes}", file=sys.stderr)
    together, in_turn = (megabytes(device_bytes(reports, in_turn=turn)) for turn in (False, True))
    print(f"device memory of a run: {together}, or {in_turn} with one network at a time", file=sys.stderr)


def _look_after(args: argparse.Namespace) -> None:
    """Check, list or prune the engines that the flags name."""
    bundle = None if args.bundle is None else read_bundle(find_bundle(args.bundle))
    folders = [getattr(args, "engine.engines", paths.engines())]
    if bundle is not None:
        folders.append(bundle.folder / "engines")
    places = {folder: _engines_in(folder, bundle, args.engine) for folder in folders}
    if args.check:
        _check(places)
    if args.list:
        lines = [_line(entry) for entries in places.values() for entry in entries]
        print("\n".join(lines) or f"no engines in {' or '.join(map(str, folders))}")
    if args.prune is not None:
        print(_pruned(places, args.prune))


def _engines_in(folder: Path, bundle: Bundle | None, engine: str | None) -> list["Entry"]:
    """The engines of a folder, longest unused first; only those of a bundle or a backend, where that is given."""
    from lssgen.engines.trt.cache import Cache
    from lssgen.engines.trt.order import content_of

    contents = None if bundle is None else {content_of(graph) for graph in bundle.manifest.graphs.values()}
    return [
        entry
        for entry in Cache(folder).entries()
        if (contents is None or entry.report.content in contents) and engine in (None, entry.report.backend)
    ]


def _line(entry: "Entry") -> str:
    return f"{entry.key}  {entry.report.backend} {entry.report.version}  {entry.report}"


def _check(places: Places) -> None:
    """Compare every engine with what its report says was built.

    Raises:
        EngineError: Names those that differ.
    """
    from lssgen.engines.trt.cache import Cache

    wrong: list[str] = []
    for folder, entries in places.items():
        faults = {fault.key: fault.reason for fault in Cache(folder).faults()}
        wrong += [f"{folder / key} {reason}" for key, reason in faults.items()]
        for entry in entries:
            if entry.key not in faults:
                print(f"{entry.key}  whole")
    if wrong:
        raise EngineError(f"{'; '.join(wrong)}; remove these folders, and what needs them builds them again")


def _pruned(places: Places, days: float) -> str:
    """Delete engines that were not used for so many days."""
    from lssgen.engines.memory import megabytes
    from lssgen.engines.trt.cache import Cache

    gone: list[Entry] = []
    for folder, entries in places.items():
        mine = {entry.key for entry in entries}
        # Of another bundle or backend than the one that was named: not to be deleted.
        keep = [entry.key for entry in Cache(folder).entries() if entry.key not in mine]
        gone += Cache(folder).prune(keep=keep, unused_days=days)
    return f"deleted {len(gone)} engines, {megabytes(sum(entry.report.plan_bytes for entry in gone))}"


if __name__ == "__main__":
    sys.exit(main())
