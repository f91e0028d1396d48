"""What the commands that build engines ahead of time are asked for."""

import argparse
from typing import TYPE_CHECKING

from lssgen.commands.flags import add_flags, given
from lssgen.commands.parser import Parser
from lssgen.commands.values import several
from lssgen.engines.demand import Demand
from lssgen.engines.options import EngineOptions
from lssgen.engines.registry import options_from_words

if TYPE_CHECKING:
    from lssgen.engines.trt.options import TrtOptions
    from lssgen.engines.trt.order import Order

BUILT = ("tensorrt", "tensorrt-rtx")
"""The engines of `lssgen.engines.registry.ENGINES` that are built."""

_INTO = "demand."


def add_build_options(parser: Parser, *, leave: tuple[str, ...] = ()) -> None:
    """Add the flags that say what engines are built for; `leave` are fields of `Demand` without one."""
    add_flags(parser, Demand, into=_INTO, leave=leave)
    parser.group("what to compile for").add_argument(
        "--target",
        type=several(str),
        default=argparse.SUPPRESS,
        metavar="SM,...",
        help="GPUs: sm89,sm120; default: all from Ampere on that take the precision (tensorrt-rtx), or the GPU of "
        "this machine (tensorrt)",
    )


def order_from_args(args: argparse.Namespace, words: EngineOptions) -> "Order":
    """What the flags ask for; `words` are the engine's options that were given."""
    from lssgen.engines.trt.options import bounds, build_options
    from lssgen.engines.trt.order import Order

    options: TrtOptions = options_from_words(args.engine, words)
    return Order(
        flavour=args.engine,
        targets=getattr(args, "target", ()),
        demand=Demand(**given(args, Demand, into=_INTO)),
        options=build_options(options),
        bounds=bounds(options),
        folder=options.engines,
        device_id=options.device_id,
    )
