"""lssgen export-triton: a model repository for Triton's Python backend. Needs neither torch nor Triton."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from lssgen.bundle import read_bundle
from lssgen.commands.common import run
from lssgen.commands.engine_options import add_engine_options, engine_words
from lssgen.commands.flags import add_flags, given
from lssgen.commands.hook_options import add_hook_options, hooks_given
from lssgen.commands.parser import Parser
from lssgen.commands.verify_option import add_verify_option
from lssgen.engines.options import EngineOptions
from lssgen.engines.registry import default_engine
from lssgen.paths import find_bundle
from lssgen.serving.options import ServerOptions
from lssgen.serving.triton.repository import TritonModel, export_triton
from lssgen.verification import see_whole

EXAMPLES = (
    "bundles/sd3 --output models --engine tensorrt --sizes 1024",
    "demo --output models --name painter --batches 1,4",
)

_LOG = logging.getLogger("lssgen")


def build_parser(prog: str = "lssgen-export-triton") -> Parser:
    parser = Parser("export-triton", prog, "BUNDLE [OPTION ...]", EXAMPLES)
    parser.add_argument(
        "bundle", metavar="BUNDLE", help="folder of a bundle, or name of one below LSSGEN_HOME; required"
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", default=Path("models"), help="the model repository; default: %(default)s"
    )
    parser.add_argument("--name", metavar="NAME", help="the model's name; default: that of the bundle's folder")
    add_flags(parser, ServerOptions)
    add_engine_options(parser, default=default_engine(), note="what runs it, in Triton's process")
    add_hook_options(parser)
    add_verify_option(parser)
    return parser


def main(argv: Sequence[str] | None = None, prog: str = "lssgen-export-triton") -> int:
    parser = build_parser(prog)
    args = parser.parse_args(argv)
    words = engine_words(parser, args)
    return run(prog, lambda: _export(args, words))


def _export(args: argparse.Namespace, words: EngineOptions) -> None:
    bundle = read_bundle(find_bundle(args.bundle))
    see_whole(bundle, args.verify)
    chosen = given(args, ServerOptions)
    ServerOptions(**chosen)  # refuses what makes no sense
    model = TritonModel(
        name=args.name or bundle.folder.resolve().name,
        engine=args.engine,
        engine_options=msgspec.to_builtins(words, enc_hook=str),
        server_options=msgspec.to_builtins(chosen),
        hooks=hooks_given(args),
    )
    print(export_triton(bundle, args.output, model, say=_LOG.info))


if __name__ == "__main__":
    sys.exit(main())
