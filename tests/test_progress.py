"""Whoever sees no bar hears now and then how far it is."""

from threading import Event

from lssgen.progress import Follower, duration, followed


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_line_tells_the_time_that_is_left_at_the_speed_so_far() -> None:
    said: list[str] = []
    clock = Clock()
    follower = Follower(said.append, clock)
    follower.tell()
    assert said == []
    follower.at(0.5, "half was there")
    clock.now += 10
    follower.tell()
    follower.at(0.625, "step 5 of 8")
    follower.tell()
    clock.now += 600
    follower.tell()
    assert said == [
        "half was there: 10 s so far",
        "step 5 of 8: 10 s so far, about 30 s left",
        "step 5 of 8: 11 min so far, about 31 min left",
    ]


def test_the_next_work_has_a_speed_of_its_own() -> None:
    said: list[str] = []
    clock = Clock()
    follower = Follower(said.append, clock)
    follower.at(0.0, "first")
    follower.at(1.0, "first")
    clock.now += 500
    follower.at(0.0, "second")
    clock.now += 10
    follower.at(0.25, "second")
    follower.tell()
    assert said == ["second: 10 s so far, about 30 s left"]


def test_lines_come_by_themselves_while_the_work_is_silent_and_stop_with_it() -> None:
    told = Event()
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        told.set()

    with followed(say, every=0.01) as follower:
        follower.at(0.0, "one long step")
        assert told.wait(60)
    count = len(said)
    assert said[0].startswith("one long step: ")
    told.clear()
    assert not told.wait(0.05)
    assert len(said) == count


def test_durations_are_for_people() -> None:
    assert [duration(seconds) for seconds in (0.2, 90, 91, 3599, 3661)] == [
        "1 s",
        "90 s",
        "2 min",
        "1 h 0 min",
        "1 h 2 min",
    ]
