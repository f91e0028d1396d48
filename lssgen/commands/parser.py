"""A parser of command lines whose refusals are one line, and whose help ends in examples."""

import argparse
import re
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

from lssgen.commands import COMMANDS


class Parser(argparse.ArgumentParser):
    """The parser of one command.

    Flags are taken as they are written, never abbreviated: a flag that is added tomorrow must not change what a script
    of today means.

    Args:
        command: A key of `COMMANDS`.
        prog: How the user called it: "lssgen run" or "lssgen-run".
        takes: What it takes, for the first line of its help.
        examples: What may follow `prog`.
    """

    def __init__(self, command: str, prog: str, takes: str, examples: Sequence[str]) -> None:
        shown = "\n".join(f"  {prog} {example}" for example in examples)
        super().__init__(
            prog=prog,
            usage=f"{prog} {takes}",
            description=COMMANDS[command],
            epilog=f"examples:\n{shown}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.examples = tuple(examples)
        self._titled: dict[str, Any] = {}

    def group(self, title: str) -> Any:
        """The group of flags with this title, made if it is not there; no title is the first group."""
        if not title:
            # argparse's own group, "options", which has no public name.
            return self._optionals
        if title not in self._titled:
            self._titled[title] = self.add_argument_group(title)
        return self._titled[title]

    def spelling(self, destination: str) -> str:
        """The flag that a name in the namespace comes from."""
        return next(action.option_strings[0] for action in self._actions if action.dest == destination)

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> tuple[Any, list[str]]:  # type: ignore[override]
        words = sys.argv[1:] if args is None else list(args)
        self._refuse_unknown(words)
        return super().parse_known_args(words, namespace)

    def error(self, message: str) -> NoReturn:
        """End with one line and status 2."""
        said = message.removeprefix("argument ")
        said = re.sub(r"^the following arguments are required: (.*)$", r"\1 is needed", said)
        said = re.sub(r"^unrecognized arguments: (.*)$", r"\1 is one word too many", said)
        said = said.replace(": expected one argument", " needs a value")
        mark = "" if said.endswith("?") else ";"
        self.exit(2, f"{self.prog}: {said}{mark} see {self.prog} --help\n")

    def _print_message(self, message: str, file: Any = None) -> None:
        """As argparse's, which passes over what cannot be written."""
        (file or sys.stderr).write(message)

    def _refuse_unknown(self, words: Sequence[str]) -> None:
        """Before argparse asks for what is missing: what is missing may be what was misspelt."""
        known = self._option_string_actions
        for word in words:
            if word == "--":
                return
            flag = word.partition("=")[0]
            # The last: a short flag with its value behind it, "-ostar.png".
            if not _is_flag(word) or flag in known or (not word.startswith("--") and word[:2] in known):
                continue
            near = get_close_matches(flag, [name for name in known if name.startswith("--")], 1)
            self.error(f"{flag} is not an option" + (f"; did you mean {near[0]}?" if near else ""))


def _is_flag(word: str) -> bool:
    """Whether argparse takes a word for a flag. Prompts may begin with a dash; numbers below zero are values."""
    return len(word) > 1 and word[0] == "-" and " " not in word and not re.match(r"-\.?\d", word)
