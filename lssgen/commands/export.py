"""lssgen-export: from a checkpoint to a bundle."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from lssgen import paths
from lssgen.commands.common import run, whole
from lssgen.commands.engine_options import add_engine_options, build, list_engines, order_from_args, prune_engines
from lssgen.engines.trt.library import Flavour
from lssgen.errors import ExportError
from lssgen.models.aliases import ALIASES


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lssgen-export",
        description="Turn a diffusers checkpoint and a latent upsampler into a bundle of ONNX graphs.",
    )
    parser.add_argument(
        "--model", help="alias (see --list-models), hub id (owner/name), diffusers folder or safetensors file"
    )
    parser.add_argument("--revision", help="branch, tag or commit on the hub")
    parser.add_argument(
        "--base",
        metavar="MODEL",
        help="alias, hub id or folder that gives a safetensors file what it lacks: settings, tokenizers, encoders",
    )
    parser.add_argument(
        "--resolutions",
        type=resolutions,
        default=(),
        metavar="SIZES",
        help="stage sizes in pixels: 512,1024 or 512x768",
    )
    parser.add_argument("--precision", choices=("fp32", "fp16", "bf16"), default="fp32", help="of the networks")
    parser.add_argument("--upsampler", type=Path, metavar="DIR", help="latent upsampler; default: the one for this VAE")
    parser.add_argument(
        "--convert-latents",
        action="store_true",
        help="take latents to the normalisation that the upsampler was trained with, and back: for a model that has "
        "the VAE of another one, normalised otherwise (Playground with an SDXL upsampler)",
    )
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
        "--probe",
        choices=("auto", "stages", "small", "none"),
        default="auto",
        help="sizes at which graphs are compared with torch; auto: every stage's, or small for large networks",
    )
    parser.add_argument("--threads", type=whole, default=0, help="CPU threads for the probes; default: all")
    parser.add_argument("--list-models", action="store_true", help="print the aliases and stop")
    add_engine_options(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.list_models:
        print(alias_table())
        return 0
    engines = args.engines or paths.engines()
    if args.list or args.prune is not None:
        print(list_engines(engines) if args.list else prune_engines(engines, args.prune))
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
        output=args.output or Path("bundles") / Path(args.model).resolve().name.removesuffix(".safetensors"),
        revision=args.revision,
        base=args.base,
        resolutions=args.resolutions,
        precision=args.precision,
        upsampler=args.upsampler,
        convert_latents=args.convert_latents,
        skip_layers=args.skip_layers is not None,
        layers_to_skip=args.skip_layers or (),
        t5=not args.no_t5,
        max_sequence_length=args.max_sequence_length,
        loras=tuple(Lora(path, scale) for path, scale in map(lora, args.lora)),
        probe=args.probe,
        threads=args.threads,
    )
    bundle = export(config, say=lambda line: print(line, file=sys.stderr, flush=True))
    if args.engine in get_args(Flavour):
        build(bundle, order_from_args(args))
    print(bundle.folder)


def resolutions(text: str) -> tuple[tuple[int, int], ...]:
    """(height, width) pairs from sides and WIDTHxHEIGHT: "512,768x1024" is ((512, 512), (1024, 768))."""
    sizes: list[tuple[int, int]] = []
    for size in text.split(","):
        sides = size.lower().split("x")
        if len(sides) > 2 or not all(side.strip().isdecimal() for side in sides):
            raise argparse.ArgumentTypeError(f"{size!r} is no size; write 512, or 768x1024 for width x height")
        sizes.append((int(sides[-1]), int(sides[0])))
    return tuple(sizes)


def layers(text: str) -> tuple[int, ...]:
    """Numbers with commas between them."""
    try:
        return tuple(int(layer) for layer in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of layers; write 7,8,9") from error


def lora(text: str) -> tuple[Path, float]:
    """Path and strength, 1 where none is given, from "style.safetensors:0.8"."""
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


if __name__ == "__main__":
    sys.exit(main())
