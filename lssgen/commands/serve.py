"""lssgen serve: bundles behind OpenAI's Images API. Needs no torch."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from lssgen.commands.common import run
from lssgen.commands.demo import demo_bundle
from lssgen.commands.engine_options import add_engine_options, engine_words
from lssgen.commands.flags import add_flags, given
from lssgen.commands.hook_options import add_hook_options, hooks_given
from lssgen.commands.parser import Parser
from lssgen.commands.values import named, named_lora
from lssgen.commands.verify_option import add_verify_option
from lssgen.engines.options import EngineOptions
from lssgen.engines.registry import default_engine
from lssgen.errors import ServingError
from lssgen.paths import find_bundle
from lssgen.serving.http.limits import Limits
from lssgen.serving.http.settings import HttpSettings
from lssgen.serving.options import ServerOptions

EXAMPLES = (
    "bundles/sd3 --engine tensorrt --sizes 1024 --api-keys keys.txt --host 0.0.0.0",
    "bundles/sd3 painter=bundles/flux --alias dall-e-3=painter --lora style=style.safetensors:0.8",
)


def build_parser(prog: str = "lssgen-serve") -> Parser:
    parser = Parser("serve", prog, "[BUNDLE ...] [OPTION ...]", EXAMPLES)
    parser.add_argument(
        "bundle",
        nargs="*",
        metavar="[NAME=]BUNDLE",
        help="folder that lssgen-export wrote, or name of one below LSSGEN_HOME, and perhaps the name that requests "
        "ask for; the first is the model of requests that name none; default: the demo model, made on first use",
    )
    parser.add_argument(
        "--alias",
        type=named,
        action="append",
        default=[],
        metavar="NAME=MODEL",
        help="another name for a model; may be repeated; default: none",
    )
    parser.add_argument(
        "--lora",
        type=named_lora,
        action="append",
        default=[],
        metavar="NAME=FILE[:STRENGTH]",
        help="a LoRA that requests ask for as MODEL@NAME: in the model's slots where it has some, else merged when it "
        "is first asked for; may be repeated; default: none",
    )
    add_flags(parser, HttpSettings)
    add_flags(parser, Limits)
    add_flags(parser, ServerOptions)
    add_engine_options(parser, default=default_engine(), note="where to run; compiled engines are built on first use")
    add_hook_options(parser)
    add_verify_option(parser)
    return parser


def main(argv: Sequence[str] | None = None, prog: str = "lssgen-serve") -> int:
    parser = build_parser(prog)
    args = parser.parse_args(argv)
    words = engine_words(parser, args)
    return run(prog, lambda: _serve(prog, args, words))


def _serve(prog: str, args: argparse.Namespace, words: EngineOptions) -> None:
    """Serve until told to stop.

    Raises:
        ServingError: What serves is not installed.
    """
    try:
        from lssgen.serving.http.host import serve
    except ImportError as error:
        raise ServingError(f'serving needs {error.name}; pip install "lssgen[serve]"') from error
    serve(
        bundles_of(args.bundle or [str(demo_bundle(prog))]),
        engine=args.engine,
        aliases=dict(args.alias),
        loras=dict(args.lora),
        settings=HttpSettings(**given(args, HttpSettings)),
        limits=Limits(**given(args, Limits)),
        options=ServerOptions(**given(args, ServerOptions)),
        verify=args.verify,
        **hooks_given(args),
        **words,
    )


def bundles_of(said: Sequence[str]) -> Mapping[str, Path]:
    """Folders of bundles, by the names that requests ask for: that of the folder, where no other is given.

    Raises:
        ServingError: Two have one name.
    """
    found: dict[str, Path] = {}
    for text in said:
        name, given_name, place = text.partition("=")
        folder = find_bundle(place if given_name and not Path(text).exists() else text)
        name = name if given_name and not Path(text).exists() else folder.resolve().name
        if name in found:
            raise ServingError(f"two bundles are called {name}; name one of them, as in other={folder}")
        found[name] = folder
    return found


if __name__ == "__main__":
    sys.exit(main())
