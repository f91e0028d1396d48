"""lssgen-export: from a checkpoint to a bundle."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from lssgen.cli.common import run
from lssgen.engines.build import Order, Tell, build_engines
from lssgen.engines.registry import ENGINES
from lssgen.engines.trt_library import Flavour
from lssgen.errors import ExportError
from lssgen.models.aliases import ALIASES


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lssgen-export",
        description="Turn a diffusers checkpoint and a latent upsampler into a bundle of ONNX graphs.",
    )
    parser.add_argument("--model", help="alias (see --list-models), hub id (owner/name) or diffusers folder")
    parser.add_argument("--revision", help="branch, tag or commit on the hub")
    parser.add_argument(
        "--resolutions",
        type=resolutions,
        default=(),
        metavar="SIZES",
        help="stage sizes in pixels: 512,1024 or 512x768",
    )
    parser.add_argument("--precision", choices=("fp32", "fp16", "bf16"), default="fp32", help="of the networks")
    parser.add_argument("--upsampler", type=Path, metavar="DIR", help="latent upsampler; default: the one for this VAE")
    parser.add_argument("--output", type=Path, metavar="DIR", help="bundle folder; default: bundles/<model>")
    parser.add_argument(
        "--skip-layers",
        type=layers,
        nargs="?",
        const=(),
        metavar="LAYERS",
        help="allow skip-layer guidance; leaves these layers out (default: those the model's authors name)",
    )
    parser.add_argument("--no-t5", action="store_true", help="leave the T5 encoder out (SD3)")
    parser.add_argument("--max-sequence-length", type=int, metavar="N", help="tokens of the long text encoder")
    parser.add_argument(
        "--lora",
        action="append",
        default=[],
        metavar="PATH[:SCALE]",
        help="merge a LoRA in; may be repeated",
    )
    parser.add_argument(
        "--engine",
        choices=tuple(ENGINES),
        default="onnxruntime",
        help="also build the graphs for it, where it needs that",
    )
    parser.add_argument(
        "--target",
        default="",
        metavar="SM,...",
        help="GPU architectures to build for: sm89,sm120; default: all that fit",
    )
    parser.add_argument("--threads", type=int, default=0, help="CPU threads for the probes; default: all")
    parser.add_argument("--list-models", action="store_true", help="print the aliases and stop")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.list_models:
        print(alias_table())
        return 0
    if args.model is None:
        parser.error("--model is needed")
    return run(parser.prog, lambda: _export(args))


def _export(args: argparse.Namespace) -> None:
    try:
        from lssgen.export.config import ExportConfig
        from lssgen.export.export import export  # torch and diffusers take seconds to load
        from lssgen.export.lora import Lora
    except ImportError as error:
        raise ExportError(f'lssgen-export needs {error.name}; install it with pip install "lssgen[export]"') from error

    config = ExportConfig(
        model=args.model,
        output=args.output or Path("bundles") / Path(args.model).name,
        revision=args.revision,
        resolutions=args.resolutions,
        precision=args.precision,
        upsampler=args.upsampler,
        skip_layers=args.skip_layers is not None,
        layers_to_skip=args.skip_layers or (),
        t5=not args.no_t5,
        max_sequence_length=args.max_sequence_length,
        loras=tuple(Lora(path, scale) for path, scale in map(lora, args.lora)),
        threads=args.threads,
    )
    bundle = export(config, say=_say)
    if args.engine in get_args(Flavour):
        targets = tuple(target for target in args.target.split(",") if target)
        build_engines(bundle, Order(flavour=args.engine, targets=targets), _tell())
    print(bundle.folder)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _tell() -> Tell:
    """A line for every phase of every graph's build."""
    last: list[tuple[str, str]] = []

    def tell(graph: str, phase: str, share: float) -> None:
        del share
        if (graph, phase) not in last:
            last.append((graph, phase))
            _say(f"building {graph}: {phase}")

    return tell


def resolutions(text: str) -> tuple[tuple[int, int], ...]:
    """ "512,768x1024" -> ((512, 512), (1024, 768)): a side, or WIDTHxHEIGHT; (height, width) comes out."""
    sizes: list[tuple[int, int]] = []
    for size in text.split(","):
        sides = size.lower().split("x")
        if len(sides) > 2 or not all(side.strip().isdecimal() for side in sides):
            raise argparse.ArgumentTypeError(f"{size!r} is no size; write 512, or 768x1024 for width x height")
        sizes.append((int(sides[-1]), int(sides[0])))
    return tuple(sizes)


def layers(text: str) -> tuple[int, ...]:
    """ "7,8,9" -> (7, 8, 9)."""
    try:
        return tuple(int(layer) for layer in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of layers; write 7,8,9") from error


def lora(text: str) -> tuple[Path, float]:
    """ "style.safetensors:0.8" -> the path and its strength, 1 where none is given."""
    path, colon, scale = text.rpartition(":")
    try:
        return (Path(path), float(scale)) if colon else (Path(text), 1.0)
    except ValueError:  # the colon belongs to the path
        return Path(text), 1.0


def alias_table() -> str:
    """Every alias, its source and its licence."""
    rows = [
        (a.name, "in this package" if a.local else a.source, a.licence + (" (gated)" if a.gated else ""))
        for a in ALIASES.values()
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    return "\n".join(f"{name:{widths[0]}}  {source:{widths[1]}}  {licence}" for name, source, licence in rows)
