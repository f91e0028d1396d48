"""Regular expressions of strangers: which of several patterns each name fits, in bounded time and memory.

PEFT's rank_pattern and alpha_pattern are regular expressions out of a downloaded file, and Python's matcher may take
longer than the universe has for one. Plain names are matched here; everything else in a process that is ended.
"""

import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence

from lssgen.errors import ModelError

SECONDS = 10.0
"""Time for all patterns of a file together; ordinary ones take milliseconds."""

LONGEST = 1000
"""Characters of a pattern; the longest name of a published layer has 80."""

MOST = 4096
"""Patterns; PEFT's EVA writes one for each layer, and FLUX has 500."""

_PLAIN = re.compile(r"\^?[\w.\-]+\$?")
"""Patterns without repeats or choices, whose matching takes no time; a dot fits any character there too."""

_CHILD = """
import json, re, sys
try:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
except (ImportError, OSError, ValueError):
    pass
patterns, names = json.load(sys.stdin)
compiled = [re.compile(pattern) for pattern in patterns]
json.dump([next((at for at, one in enumerate(compiled) if one.match(name)), None) for name in names], sys.stdout)
"""


def first_fits(patterns: Sequence[str], names: Sequence[str], said_by: str) -> Mapping[str, str]:
    """The first pattern that each name fits, as PEFT matches them: the whole name, or what follows one of its dots.

    Args:
        patterns: Regular expressions.
        names: Layers, with dots.
        said_by: What the patterns are called in a message.

    Returns:
        Pattern by name; names that fit none are left out.

    Raises:
        ModelError: A pattern is not a regular expression, or too long, or there are too many, or they take too long.
    """
    if len(patterns) > MOST:
        raise ModelError(f"{said_by} has {len(patterns)} patterns; {MOST} are read at most")
    for pattern in patterns:
        _see(pattern, said_by)
    # PEFT's get_pattern_key, whose re.match ties the beginning.
    whole = [rf"(.*\.)?({pattern})$" for pattern in patterns]
    if all(_PLAIN.fullmatch(pattern) for pattern in patterns):
        compiled = [re.compile(one) for one in whole]
        found = [next((at for at, one in enumerate(compiled) if one.match(name)), None) for name in names]
    else:
        found = _elsewhere(whole, names, said_by)
    return {name: patterns[at] for name, at in zip(names, found, strict=True) if at is not None}


def _see(pattern: str, said_by: str) -> None:
    if len(pattern) > LONGEST:
        raise ModelError(f"{said_by} has a pattern of {len(pattern)} characters; {LONGEST} are read at most")
    if _PLAIN.fullmatch(pattern):
        return
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError, MemoryError) as error:
        raise ModelError(f"{said_by} has {pattern[:80]!r}, which is not a regular expression: {error}") from error


def _elsewhere(patterns: Sequence[str], names: Sequence[str], said_by: str) -> Sequence[int | None]:
    """Index of the first pattern that each name fits, found by a process of its own."""
    try:
        done = subprocess.run(
            # Without the user's environment and site-packages: only the standard library is needed, and starts at once.
            [sys.executable, "-I", "-S", "-c", _CHILD],
            input=json.dumps([list(patterns), list(names)]),
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=SECONDS,
            check=True,
        )
    except subprocess.TimeoutExpired:
        raise ModelError(
            f"{said_by} takes more than {SECONDS:g} s to be matched; write the layers' names in place of the patterns"
        ) from None
    except (OSError, subprocess.CalledProcessError) as error:
        raise ModelError(f"{said_by} cannot be matched ({error}); write the layers' names in place of it") from error
    return json.loads(done.stdout)
