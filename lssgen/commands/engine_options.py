"""Flags for compiled engines, of the commands that build them; builds with a report, the list of engines, pruning."""

import argparse
import sys
from pathlib import Path
from typing import cast, get_args

from lssgen import paths
from lssgen.bundle import Bundle
from lssgen.engines.demand import Demand
from lssgen.engines.trt.cache import Cache
from lssgen.engines.trt.compiler import BuildOptions
from lssgen.engines.trt.fit import device_bytes
from lssgen.engines.trt.library import Flavour
from lssgen.engines.trt.order import Order, build_engines, progress_bar
from lssgen.engines.trt.report import Bounds, megabytes


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `lssgen-export`."""
    demand = Demand()
    group = parser.add_argument_group("compiled engines")
    group.add_argument(
        "--engine",
        choices=("onnxruntime", *get_args(Flavour)),
        default="onnxruntime",
        help="also build every graph for it, where it needs that; default: %(default)s, which does not",
    )
    group.add_argument(
        "--target", type=_words, default=(), metavar="SM", help="GPUs to build for (tensorrt-rtx): sm89,sm120"
    )
    group.add_argument(
        "--batch", type=_counts, default=demand.batches, metavar="N,...", help="pictures at a time; default: 1"
    )
    group.add_argument(
        "--branches",
        type=_counts,
        default=demand.branches,
        metavar="N,...",
        help="guidance branches; default: the model's",
    )
    add_build_options(group)
    group.add_argument("--list", action="store_true", help="print the engines that are there, and stop")
    group.add_argument(
        "--prune", type=float, nargs="?", const=30.0, metavar="DAYS", help="delete engines unused for so long, and stop"
    )


def add_build_options(group: argparse._ArgumentGroup) -> None:  # pyright: ignore[reportPrivateUsage]
    """Add the flags of every command that builds engines, ahead of time or on first use."""
    bounds = Bounds()
    group.add_argument("--engines", type=Path, metavar="DIR", help="folder of the engines; default: below LSSGEN_HOME")
    group.add_argument("--tf32", action="store_true", help="let fp32 networks use TF32")
    group.add_argument(
        "--refit",
        action="store_true",
        help="keep weights exchangeable, and make an engine of another LoRA from one that is there; needs the GPU",
    )
    group.add_argument("--weight-streaming", action="store_true", help="weights may stay on the host (tensorrt)")
    group.add_argument(
        "--max-scratch", type=float, default=bounds.activation_bytes / 2**30, metavar="GIB", help="default: %(default)g"
    )
    group.add_argument(
        "--allow-unfused", type=int, default=bounds.unfused, metavar="N", help="attentions that need not be fused"
    )


def order_from_args(args: argparse.Namespace) -> Order:
    """What the flags of `lssgen-export` ask for; `--engine` must be one that is built for."""
    return Order(
        flavour=cast(Flavour, args.engine),
        targets=args.target,
        demand=Demand(batches=args.batch, branches=args.branches),
        options=build_from_args(args),
        bounds=bounds_from_args(args),
        folder=args.engines or paths.engines(),
    )


def build_from_args(args: argparse.Namespace) -> BuildOptions:
    return BuildOptions(tf32=args.tf32, weight_streaming=args.weight_streaming, refit=args.refit)


def bounds_from_args(args: argparse.Namespace) -> Bounds:
    return Bounds(activation_bytes=int(args.max_scratch * 2**30), unfused=args.allow_unfused)


def build(bundle: Bundle, order: Order) -> None:
    """Build the engines of a bundle; a bar while they are built, a line for each, and what running them takes."""
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


def list_engines(folder: Path) -> str:
    """A line an engine, longest unused first."""
    lines = [
        f"{entry.key}  {entry.report.backend} {entry.report.version}  {entry.report}"
        for entry in Cache(folder).entries()
    ]
    return "\n".join(lines) or f"no engines in {folder}"


def prune_engines(folder: Path, days: float) -> str:
    """Delete engines that were not used for so many days."""
    gone = Cache(folder).prune(unused_days=days)
    size = sum(entry.report.plan_bytes for entry in gone)
    return f"deleted {len(gone)} engines, {megabytes(size)}"


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _counts(text: str) -> tuple[int, ...]:
    try:
        counts = tuple(int(word) for word in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of counts; write 1 or 1,4") from error
    if min(counts) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} holds a count below 1")
    return counts
