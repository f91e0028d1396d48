"""Flags that choose a plan, for every command that makes one."""

import argparse
from typing import Any

from lssgen.commands.flags import add_flags, add_pair, given, pair
from lssgen.commands.parser import Parser
from lssgen.plan import PlanOptions

_OWN = "the model's own"


def add_plan_options(parser: Parser) -> None:
    """Add the flags of `PlanOptions`, and two that give both sides at once."""
    add_pair(parser, "--size", "picture size in pixels", group="what to paint", unset=_OWN)
    add_pair(parser, "--base-size", "size at which a stage gets all steps", group="stages", unset=_OWN)
    add_flags(parser, PlanOptions)


def given_plan_options(args: argparse.Namespace) -> dict[str, Any]:
    """What the flags say, by field of `PlanOptions`; what was not given is left out. One side wins over both.

    Raises:
        PlanError: Skip-layer guidance with impossible numbers.
    """
    sizes = pair(args, "--size", "width", "height") | pair(args, "--base-size", "base_width", "base_height")
    return sizes | given(args, PlanOptions)
