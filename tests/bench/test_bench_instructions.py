"""Counting what a thread does by the kernel's counters: proved on one that every Linux has."""

import sys

import pytest

from lssgen.bench.instructions import INSTRUCTIONS, NANOSECONDS, Event, counted

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="perf events are Linux's")


def spin(turns: int) -> int:
    return sum(turn * turn for turn in range(turns))


def test_more_work_is_more_of_the_event() -> None:
    few, many = counted(lambda: spin(10_000), NANOSECONDS), counted(lambda: spin(1_000_000), NANOSECONDS)
    if few is None or many is None:
        pytest.skip("this system lets nobody count")
    assert 0 < 10 * few < many


def test_what_goes_wrong_in_the_work_is_not_swallowed() -> None:
    def fail() -> None:
        raise ValueError("no")

    if counted(spin_little, NANOSECONDS) is None:
        pytest.skip("this system lets nobody count")
    with pytest.raises(ValueError, match="no"):
        counted(fail, NANOSECONDS)


def spin_little() -> int:
    return spin(10)


def test_an_event_that_is_not_counted_gives_no_number_and_does_no_work() -> None:
    assert counted(lambda: pytest.fail("it was done"), Event(999, 1)) is None


def test_instructions_are_a_number_where_there_is_a_counter() -> None:
    found = counted(lambda: spin(10_000))
    assert found is None or found > 10_000
    assert Event(0, 1) == INSTRUCTIONS
