"""Flags that name hooks which see every picture first."""

import argparse
from typing import Any

from lssgen.commands.parser import Parser


def add_hook_options(parser: Parser) -> None:
    """Add `--checker` and `--watermark`."""
    group = parser.group("hooks")
    group.add_argument(
        "--checker",
        action="append",
        metavar="MODULE:FUNCTION",
        help="what FUNCTION() makes looks at every picture, previews too, before it is given away; or the name that an "
        "installed package gives it; may be repeated; default: none",
    )
    group.add_argument(
        "--watermark",
        metavar="MODULE:FUNCTION",
        help="what FUNCTION() makes changes every picture after that; default: none",
    )


def hooks_given(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments of `Guard`, by name."""
    return {"checker": args.checker, "watermark": args.watermark}
