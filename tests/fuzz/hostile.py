"""What fuzz targets share: mutated inputs, and what a reader may do with them."""

import json
import signal
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

CORPUS = Path(__file__).parent / "corpus"

EXAMPLES = 400
"""Inputs of a target. All targets together take about a minute."""

LONGEST_S = 20
"""Seconds after which a reader counts as hanging."""

MANY = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)

WORDS = (
    b"", b"\0", b"\xff", b"\xef\xbb\xbf", b"\xff\xfe", b"[" * 2000, b'{"a":' * 2000, b"null", b"-1", b"1e400", b"NaN",
    b"9" * 400, b'"', b"\\ud800", b"\n", b"\r", b"../../x", b"/dev/zero", b"true", b"{}", b"[]",
)  # fmt: skip
"""Bytes that are put into other bytes."""

VALUES = (
    None, True, 0, -1, 1, 2**31, 2**63, -(2**63), 10**30, 0.0, -1.5, 1e308, 5e-324, "", "x", "5", "../x", "/dev/zero",
    "\u0000", "\u202e", "e" * 3000, [], [0], [[]], {}, {"x": 1}, {"type": "state"},
)  # fmt: skip
"""Values that are put into JSON in the place of others."""


@dataclass
class Tally:
    """What became of the inputs.

    Attributes:
        target: Name of the reader.
        refusals: Number of refusals by class, and of "accepted" ones.
    """

    target: str
    refusals: Counter[str] = field(default_factory=Counter[str])

    @contextmanager
    def expect(self, *refusals: type[Exception]) -> Generator[None]:
        """The block ends well, or raises one of these with a line that says something; anything else is a fault."""
        with _in_time():
            try:
                yield
            except refusals as error:
                self._note(type(error).__name__, str(error))
            else:
                self.refusals["accepted"] += 1

    def _note(self, refusal: str, said: str) -> None:
        assert said.strip(), f"{refusal} says nothing"
        assert len(said) < 3000, f"{refusal} says too much: {said[:200]}..."
        self.refusals[refusal] += 1

    def __str__(self) -> str:
        parts = ", ".join(f"{count} {name}" for name, count in self.refusals.most_common())
        return f"{self.target}: {self.refusals.total()} inputs: {parts}"


@contextmanager
def _in_time() -> Generator[None]:
    def stop(*_: object) -> None:
        raise TimeoutError(f"a reader took more than {LONGEST_S} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LONGEST_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def corpus(name: str) -> list[bytes]:
    """Contents of the files of a target's corpus."""
    return [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]


def mutated(seeds: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """One of some contents with up to six places cut, flipped, doubled or replaced; sometimes anything at all."""
    place = st.tuples(
        st.sampled_from(("cut", "flip", "double", "put", "end")), st.integers(0, 10**6), st.integers(0, 255)
    )
    changed = st.tuples(st.sampled_from(list(seeds)), st.lists(place, max_size=6), st.sampled_from(WORDS))
    return st.one_of(changed.map(lambda drawn: _changed(*drawn)), st.binary(max_size=200), st.sampled_from(WORDS))


def _changed(data: bytes, places: Sequence[tuple[str, int, int]], word: bytes) -> bytes:
    for how, where, what in places:
        at = where % (len(data) + 1)
        match how:
            case "cut":
                data = data[:at] + data[at + what % 16 :]
            case "flip":
                data = data[:at] + bytes(byte ^ (1 << what % 8) for byte in data[at : at + 1]) + data[at + 1 :]
            case "double":
                data = data[:at] + data[at : at + what] + data[at:]
            case "put":
                data = data[:at] + word + data[at:]
            case _:
                data = data[:at]
    return data


def edited(seed: bytes) -> st.SearchStrategy[bytes]:
    """A JSON document with up to three of its values replaced or removed."""
    count = len(list(_places(json.loads(seed))))
    edit = st.tuples(st.integers(0, count - 1), st.one_of(st.sampled_from(VALUES), st.just(Ellipsis)))
    return st.lists(edit, min_size=1, max_size=3).map(lambda edits: _edited(seed, edits))


def _edited(seed: bytes, edits: Sequence[tuple[int, Any]]) -> bytes:
    document: Any = json.loads(seed)
    for number, value in edits:
        places = list(_places(document))
        if not places:
            break
        holder, key = places[number % len(places)]
        if value is Ellipsis:
            del holder[key]
        else:
            holder[key] = json.loads(json.dumps(value))
    return json.dumps(document).encode()


def _places(value: Any) -> Generator[tuple[Any, Any]]:
    """Every list or object of a document with every one of its keys."""
    keys: Any = (
        range(len(cast(list[Any], value))) if isinstance(value, list) else value if isinstance(value, dict) else ()
    )
    for key in keys:
        yield value, key
        yield from _places(value[key])
