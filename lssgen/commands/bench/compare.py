"""lssgen bench compare: which of two sides is slower."""

import argparse
import logging
from pathlib import Path

from lssgen.bench.cases import PROMPT
from lssgen.bench.duel import Duel, Round, Terms, compare, rounds_to_go_on, write_duel
from lssgen.bench.records import see_place
from lssgen.bench.sides import side_from_text
from lssgen.commands.bench.shared import bundle_of, exit_status, watched
from lssgen.commands.flags import add_flags, given
from lssgen.commands.parser import Parser
from lssgen.errors import BenchError

EXAMPLES = (
    "demo demo,engine=openvino -o compared.json",
    "demo --expect-same --rounds 12",
)

_LOG = logging.getLogger("lssgen")


def build_parser(prog: str) -> Parser:
    parser = Parser("bench", prog, "A [B] [OPTION ...]", EXAMPLES)
    said = "BUNDLE,NAME=VALUE,...: a bundle and options of the run or the engine; engine=NAME and code=CHECKOUT too"
    parser.add_argument("a", metavar="A", help=f"what it is compared with, as {said}; required")
    parser.add_argument("b", nargs="?", metavar="B", help="what is asked about, written alike; default: A itself")
    add_flags(parser, Terms)
    parser.add_argument(
        "--expect-same", action="store_true", help="compare A with itself: a FAIL is a false alarm of the gate"
    )
    parser.add_argument("--prompt", default=PROMPT, metavar="TEXT", help="words of the prompts; default: %(default)s")
    parser.add_argument("--quiet", action="store_true", help="no progress, and warnings only")
    group = parser.group("output")
    group.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="all rounds as JSON, written after each; run again to go on; "
        "default: none",
    )  # fmt: skip
    for verdict, status in (("pass", 0), ("fail", 1), ("undecided", 3)):
        group.add_argument(
            f"--status-{verdict}", type=exit_status, default=status, metavar="N",
            help=f"exit status of {verdict.upper()}; default: %(default)s",
        )  # fmt: skip
    return parser


def work(args: argparse.Namespace) -> int:
    """Compare, tell, and give the exit status that the verdict has.

    Raises:
        BenchError: The sides make no sense, or cannot be run.
    """
    terms = Terms(**given(args, Terms))
    if args.expect_same == bool(args.b):
        raise BenchError("compare takes A and B, or A with --expect-same")
    a = side_from_text(args.a)
    b = a if args.expect_same else side_from_text(args.b)
    for side in (a, b):
        bundle_of(argparse.Namespace(bundle=side.bundle), "lssgen bench")  # says what is wrong before any process does
    known: tuple[Round, ...] = ()
    if args.output:
        see_place(args.output)
        known = rounds_to_go_on(args.output, a, b, args.prompt)
    if known:
        _LOG.info("going on with the %d rounds in %s", len(known), args.output)
    with watched(args, _LOG.info) as watch:

        def hear(duel: Duel) -> None:
            if args.output:
                write_duel(duel, args.output)
            watch.at(f"{duel.estimate}", len(duel.rounds), terms.rounds)

        duel = compare(a, b, terms, prompt=args.prompt, known=known, on_round=hear)
    print(told(duel))
    return getattr(args, f"status_{duel.verdict.lower()}")


def told(duel: Duel) -> str:
    """A verdict for people."""
    lines = [
        f"{duel.verdict}: B's time over A's is {duel.estimate}, after {len(duel.rounds)} rounds; "
        f"allowed is {100 * duel.margin:+g} %",
        f"second opinion (bootstrap of the median, 95 %): {duel.second_opinion}",
        f"A: {duel.a}",
        f"B: {duel.b}",
        *duel.complaints,
    ]
    if duel.verdict == "UNDECIDED":
        lines.append("it takes more rounds, or a quieter machine, to tell")
    return "\n".join(lines)
