"""lssgen export: from a checkpoint to a bundle, and to engines where that is asked for."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lssgen.commands.build_options import BUILT, add_build_options, order_from_args
from lssgen.commands.common import run
from lssgen.commands.engine_options import add_engine_options, engine_words
from lssgen.commands.flags import add_flags, given
from lssgen.commands.parser import Parser
from lssgen.commands.values import integer, several, within
from lssgen.engines.options import EngineOptions
from lssgen.errors import ExportError
from lssgen.export.config import ExportConfig
from lssgen.models.aliases import ALIASES

EXAMPLES = (
    "--model sd3 --resolutions 512,1024 --precision fp16",
    "--model dreams.safetensors --lora style.safetensors:0.8 --output bundles/dreams",
)
_PLAIN = "onnxruntime"

MOST_LAYERS = 10_000
"""Number that no layer has; the model says which it has."""


def build_parser(prog: str = "lssgen-export") -> Parser:
    parser = Parser("export", prog, "--model MODEL [OPTION ...]", EXAMPLES)
    add_flags(parser, ExportConfig)
    parser.add_argument(
        "--skip-layers",
        type=within(0, MOST_LAYERS, several(integer)),
        nargs="?",
        const=(),
        default=argparse.SUPPRESS,
        metavar="LAYERS",
        help="allow skip-layer guidance, which leaves these layers out: 7,8,9; default: off; without LAYERS, those "
        "that the model's authors name",
    )
    parser.add_argument("--list-models", action=_ListModels, nargs=0, help="print the aliases and stop")
    add_engine_options(
        parser,
        (_PLAIN, *BUILT),
        default=_PLAIN,
        note="also build engines for it, where it needs them",
        leave=("threads", "low_memory"),
    )
    add_build_options(parser, leave=("resolutions",))
    return parser


def main(argv: Sequence[str] | None = None, prog: str = "lssgen-export") -> int:
    parser = build_parser(prog)
    args = parser.parse_args(argv)
    words = engine_words(parser, args)
    return run(prog, lambda: _export(prog, args, words))


def config_from_args(args: argparse.Namespace) -> ExportConfig:
    """What the flags ask for.

    Raises:
        ModelError: A LoRA with an impossible strength.
    """
    words = given(args, ExportConfig)
    # Resolved, since "." has no name.
    name = Path(args.model).resolve().name.removesuffix(".safetensors")
    if net := words.get("controlnet"):  # a bundle of its own: the step's graph is another
        name = f"{name}-{Path(net).resolve().name.partition('@')[0]}"
    words.setdefault("output", Path("bundles") / name)
    if hasattr(args, "skip_layers"):
        words |= {"skip_layers": True, "layers_to_skip": args.skip_layers}
    return ExportConfig(**words)


def _export(prog: str, args: argparse.Namespace, words: EngineOptions) -> None:
    config = config_from_args(args)
    order = order_from_args(args, words) if args.engine in BUILT else None
    if order is not None:
        from lssgen.engines.trt.library import require_library

        require_library(order.flavour)  # before the minutes that the export takes
    try:
        from lssgen.export.export import export  # torch and diffusers take seconds to load
    except ImportError as error:
        if (error.name or "").startswith("lssgen"):
            raise  # a mistake of ours, which no extra mends
        raise ExportError(f'{prog} needs {error.name}; install it with pip install "lssgen[export]"') from error

    bundle = export(config, say=lambda line: print(line, file=sys.stderr, flush=True))
    if order is not None:
        from lssgen.commands.build import build

        build(bundle, order)
    print(bundle.folder)


class _ListModels(argparse.Action):
    """Prints the aliases and stops, whatever else is missing."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(alias_table())
        parser.exit()


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
