"""lssgen encode: embeddings of prompts to a file, for a run on another machine without the encoder. Needs no torch."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from lssgen.bundle import read_bundle
from lssgen.commands.common import run, warnings_as_lines
from lssgen.commands.demo import demo_bundle
from lssgen.commands.engine_options import add_engine_options, engine_words
from lssgen.commands.flags import add_flag, given
from lssgen.commands.parser import Parser
from lssgen.commands.verify_option import add_verify_option
from lssgen.engines.options import EngineOptions
from lssgen.engines.registry import default_engine, open_backend
from lssgen.paths import find_bundle
from lssgen.runtime.embeds import write_embeds
from lssgen.runtime.options import Asked, Request
from lssgen.runtime.pictures import refuse_unwritable
from lssgen.runtime.pipeline import Pipeline
from lssgen.verification import see_whole

EXAMPLES = (
    '"a lighthouse at dusk" --bundle bundles/flux -o lighthouse.safetensors',
    '"a red star" "a blue star" --negative-prompt "text, frames" -o stars.safetensors',
)


def build_parser(prog: str = "lssgen-encode") -> Parser:
    parser = Parser("encode", prog, "PROMPT ... [OPTION ...]", EXAMPLES)
    parser.add_argument(
        "prompt", nargs="+", metavar="PROMPT", help="what to encode; several go into one file, in their order; required"
    )
    parser.add_argument(
        "--bundle",
        metavar="DIR",
        help="folder that lssgen-export wrote, or name of one below LSSGEN_HOME; default: the demo model, made on "
        "first use",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("prompt.safetensors"),
        metavar="FILE",
        help="file for lssgen run --prompt-embeds; default: %(default)s",
    )
    for name in ("negative_prompt", "prompt_weighting"):
        add_flag(parser, Request, name)
    add_engine_options(parser, default=default_engine(), note="where to run")
    add_verify_option(parser)
    return parser


def main(argv: Sequence[str] | None = None, prog: str = "lssgen-encode") -> int:
    parser = build_parser(prog)
    args = parser.parse_args(argv)
    words = engine_words(parser, args)
    with warnings_as_lines():
        return run(prog, lambda: _encode(prog, args, words))


def _encode(prog: str, args: argparse.Namespace, words: EngineOptions) -> None:
    bundle = read_bundle(find_bundle(args.bundle) if args.bundle else demo_bundle(prog))
    refuse_unwritable(args.output)
    see_whole(bundle, args.verify)
    with Pipeline(bundle, open_backend(args.engine, **words)) as pipeline:
        write_embeds(pipeline.encode(args.prompt, **cast(Asked, given(args, Request))), args.output)
    print(args.output)


if __name__ == "__main__":
    sys.exit(main())
