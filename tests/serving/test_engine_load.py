"""Many clients at once, some of whom leave, hurry, or ask for what cannot be: each gets one end and its picture."""

import random
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import lssgen
from lssgen.bundle import Bundle
from lssgen.errors import CancelledError, RefusedError
from lssgen.runtime import Options
from lssgen.serving import ImageRequest, Server, ServerOptions

CLIENTS, REQUESTS = 50, 3000
SIZES = ((64, 64), (64, 128), (128, 128))
PROMPTS = ("a red star above a blue circle on a white background", "a green square", "a yellow triangle left of a ring")


@dataclass
class Book:
    """What became of everything."""

    ends: Counter[str] = field(default_factory=Counter)
    pictures: list[tuple[int, bytes]] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    turn: threading.Lock = field(default_factory=threading.Lock)

    def write(self, end: str, picture: tuple[int, bytes] | None = None) -> None:
        with self.turn:
            self.ends[end] += 1
            if picture is not None:
                self.pictures.append(picture)
            if sum(self.ends.values()) % 50 == 0:
                self.memory.append(int(Path("/proc/self/statm").read_text().split()[1]) * 4096)


def words(number: int) -> Options:
    """What request `number` paints; 36 different pictures in all."""
    height, width = SIZES[number % 3]
    return Options(
        height=height, width=width, num_inference_steps=3 + number // 3 % 3, min_resolution=64, seed=number % 36,
        shorten=False,
    )  # fmt: skip


def client(server: Server, numbers: list[int], book: Book) -> None:
    rng = random.Random(numbers[0])
    for number in numbers:
        wrong = rng.random() < 0.01
        hurries, leaves = rng.random() < 0.1, rng.random() < 0.1
        options = Options(**{**words(number), **({"guidance_scale": float("nan")} if wrong else {})})
        asked = ImageRequest(
            prompt=PROMPTS[number % 3], options=options, deadline_ms=rng.choice([50, 500, 60_000]) if hurries else None
        )
        try:
            ticket = server.submit(asked)
        except RefusedError as error:
            book.write(error.code if (error.code == "invalid_value") == wrong else "wrongly refused")
            continue
        if leaves:
            threading.Timer(0.05 * rng.random(), ticket.cancel).start()
        try:
            answer = ticket.result(300)
            plain = answer.request.plan_options.num_inference_steps == options.get("num_inference_steps")
            book.write("done", (number % 36, answer.pictures[0].latent.tobytes()) if plain and not hurries else None)
        except CancelledError:
            assert leaves
            book.write("cancelled")
        except RefusedError as error:
            assert hurries
            book.write(error.code)


@pytest.mark.slow
def test_three_thousand_requests_of_fifty_clients_each_have_one_end_and_their_own_picture(demo: Bundle) -> None:
    with lssgen.load(demo.folder, threads=1) as pipeline:
        alone: dict[int, Any] = {
            number: pipeline(PROMPTS[number % 3], **words(number)).latents[0].tobytes() for number in range(36)
        }
    book = Book()
    options = ServerOptions(batches=(1, 2, 4, 8), sizes=((128, 128),), most_requests=40)
    with Server(demo.folder, options=options, threads=1) as server:
        assert server.wait_ready(60)
        threads = [
            threading.Thread(target=client, args=(server, list(range(first, REQUESTS, CLIENTS)), book))
            for first in range(CLIENTS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        stats = server.stats()
    assert sum(book.ends.values()) == REQUESTS
    refusals = {"invalid_value", "deadline_impossible", "deadline_passed", "queue_full"}
    assert set(book.ends) <= {"done", "cancelled", *refusals}
    assert stats.accepted == stats.done + stats.cancelled + stats.failed
    assert (stats.running, stats.waiting, stats.waiting_pixels) == (0, 0, 0)
    assert book.ends["done"] == stats.done
    wrong = [number for number, latent in book.pictures if latent != alone[number]]
    assert wrong == []
    assert len(book.pictures) > REQUESTS / 2
    assert stats.steps / stats.calls > 3  # pictures shared calls
    # Everything is there after the first quarter; a leak of 0.1 MB a request would be 225 MB over the rest.
    quarter = len(book.memory) // 4
    grown = max(book.memory[-quarter:]) - max(book.memory[:quarter])
    assert grown < 60e6, f"memory grew by {grown / 1e6:.0f} MB"
