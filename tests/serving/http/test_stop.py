"""A server that is told to stop: what it does not end is told so, in a form that clients post again for."""

import threading
import time
from typing import Any

from fake_room import FakeRoom
from sites import Host


def test_what_is_open_when_the_time_is_over_is_told_to_come_again(host: Host, room: FakeRoom) -> None:
    room.hold.clear()
    told: list[Any] = []
    with host(settings={"drain_seconds": 1.0}) as site:

        def ask(**more: Any) -> None:
            told.append(site.http.post("/v1/images/generations", json={"prompt": "a fox", **more}))

        asking = [threading.Thread(target=ask), threading.Thread(target=ask, kwargs={"stream": True})]
        for one in asking:
            one.start()
        while len(room.asked) < 2:
            time.sleep(0.01)
        began = time.monotonic()
        site.stop()
        for one in asking:
            one.join(10)
        took = time.monotonic() - began
    answer, stream = sorted(told, key=lambda one: -one.status_code)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "stopping")
    assert answer.headers["x-should-retry"] == "true"
    assert stream.status_code == 200
    assert stream.text.rstrip().splitlines()[-2] == "event: error"
    assert '"code":"stopping"' in stream.text
    assert took < 1.9  # requests and jobs have the same second
