"""Flags that choose an engine, and the options of every engine: only those of the chosen one are heard."""

import argparse
from collections.abc import Sequence
from typing import cast

from lssgen.choices import flags_of
from lssgen.commands.flags import add_flag, given
from lssgen.commands.parser import Parser
from lssgen.commands.values import one_of
from lssgen.engines.options import EngineOptions
from lssgen.engines.registry import ENGINES, options_class

_INTO = "engine."


def add_engine_options(
    parser: Parser,
    engines: Sequence[str] = tuple(ENGINES),
    *,
    default: str = "",
    note: str,
    leave: tuple[str, ...] = (),
) -> None:
    """Add `--engine`, and a flag for every option that one of some engines has.

    Args:
        parser: Where to.
        engines: Which may be chosen.
        default: The one that is used where none is given; empty: there is none.
        note: What `--engine` does.
        leave: Options without a flag here.
    """
    parser.group("engine").add_argument(
        "--engine",
        type=one_of(engines),
        metavar="{" + ",".join(engines) + "}",
        default=default or None,
        help="; ".join(filter(None, [note, default and f"default: {default}"])),
    )
    for name, holders in _holders(engines, leave).items():
        some = "" if len(holders) == len(engines) else f"only with {', '.join(holders)}"
        add_flag(parser, options_class(holders[0]), name, into=_INTO, group="engine", note=some)


def engine_words(parser: Parser, args: argparse.Namespace) -> EngineOptions:
    """The options that were given; ends the command where the chosen engine does not have one of them."""
    words = given(args, options_class(args.engine), into=_INTO)
    for name in vars(args):
        option = name.removeprefix(_INTO)
        if name.startswith(_INTO) and option not in words:
            holders = [engine for engine in ENGINES if option in flags_of(options_class(engine))]
            parser.error(
                f"{parser.spelling(name)} is not an option of engine {args.engine}, but of {' and '.join(holders)}"
            )
    return cast(EngineOptions, words)


def _holders(engines: Sequence[str], leave: tuple[str, ...]) -> dict[str, list[str]]:
    """The engines that have an option, by its name."""
    holders: dict[str, list[str]] = {}
    for engine in engines:
        for name in flags_of(options_class(engine)):
            if name not in leave:
                holders.setdefault(name, []).append(engine)
    return holders
