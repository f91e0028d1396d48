"""The flag that says when a bundle's files are compared with their hashes."""

from typing import get_args

from lssgen.commands.parser import Parser
from lssgen.commands.values import one_of
from lssgen.verification import Verify


def add_verify_option(parser: Parser) -> None:
    """Add --verify, a `lssgen.verification.Verify`."""
    occasions = get_args(Verify)
    parser.add_argument(
        "--verify",
        type=one_of(occasions),
        default="once",
        metavar="{" + ",".join(occasions) + "}",
        help="when to compare the bundle's files with their hashes: at every start, once on a machine for what is new "
        "or has changed, or never; default: %(default)s",
    )
