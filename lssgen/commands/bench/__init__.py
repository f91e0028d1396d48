"""lssgen bench: measure a bundle; and the actions that compare, gate, explain and remember."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from lssgen.commands.bench.measuring import add_measuring, measured_case_by_case
from lssgen.commands.common import run, warnings_as_lines
from lssgen.commands.parser import Parser
from lssgen.runtime.text import PromptWarning

ACTIONS = {
    "aiperf": "Tell what AIPerf has measured of a server, in the bench's words, and add it to a history.",
    "compare": "Compare two bundles, engines, options or checkouts of the code: PASS, FAIL or UNDECIDED.",
    "exact": "Compare what a run asks for, without a clock, with a committed baseline.",
    "explain": "Tell which engine computes which component on this machine, and why.",
    "guarantee": "Measure whether stages are faster than one stage, and write it into the bundle.",
    "history": "Show how latencies of a JSONL file went, and where they changed.",
    "loadgen": "Let MLPerf's LoadGen measure a bundle or a server: SingleStream, Offline or Server.",
}
"""Effect of every action, by its name; `lssgen.commands.bench.<name>` has its `build_parser` and `work`."""

EXAMPLES = (
    "demo --engine auto --sizes 128,256 --single -o demo.json --plots plots",
    "compare demo demo,engine=openvino --margin 0.03 -o compared.json",
)


class _Parser(Parser):
    """The parser of the command, which hands the words of an action to that action's own."""

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> tuple[Any, list[str]]:  # type: ignore[override]
        words = sys.argv[1:] if args is None else list(args)
        if words and words[0] in ACTIONS:
            parser = action_parser(words[0], f"{self.prog} {words[0]}")
            found = parser.parse_args(words[1:], namespace)
            found.action = words[0]
            return found, []
        return super().parse_known_args(words, namespace)


def build_parser(prog: str = "lssgen-bench") -> Parser:
    parser = _Parser("bench", prog, "[BUNDLE | ACTION ...] [OPTION ...]", EXAMPLES)
    actions = "\n".join(f"  {name:10} {does}" for name, does in ACTIONS.items())
    parser.description = f"{parser.description}\n\nactions ({prog} ACTION --help explains one):\n{actions}"
    parser.set_defaults(action="")
    add_measuring(parser)
    return parser


def action_parser(name: str, prog: str) -> Parser:
    """The parser of one action."""
    parser: Parser = import_module(f"lssgen.commands.bench.{name}").build_parser(prog)
    parser.description = ACTIONS[name]
    return parser


def main(argv: Sequence[str] | None = None, prog: str = "lssgen-bench") -> int:
    parser = build_parser(prog)
    args = parser.parse_args(argv)
    ending = Ending()
    name = f"{prog} {args.action}".rstrip()

    def work() -> None:
        # Every run has the prompt in another order, and would say again that it is too long.
        with warnings_as_lines(once=PromptWarning):
            if args.action:
                ending.status = import_module(f"lssgen.commands.bench.{args.action}").work(args)
            else:
                ending.status = measured_case_by_case(parser, args)

    return run(name, work, quiet=getattr(args, "quiet", False)) or ending.status


class Ending(argparse.Namespace):
    """How the command ends where nothing went wrong.

    Attributes:
        status: Exit status, which a verdict decides.
    """

    status: int = 0
