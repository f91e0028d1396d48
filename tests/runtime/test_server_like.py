"""A pipeline as a server has it: four threads, three sizes, two hundred pictures of the demo model."""

import threading
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lssgen
from lssgen.bundle import Bundle
from lssgen.ports import Array
from lssgen.runtime import Pipeline

PICTURES, THREADS = 200, 4
SIZES = ((128, 128), (128, 256), (256, 256))
PROMPTS = ("a red star above a blue circle on a white background", "a green square", "a yellow triangle left of a ring")
FEW: dict[str, Any] = {"num_inference_steps": 4, "min_resolution": 128}


def asked(number: int) -> dict[str, Any]:
    """What request `number` asks for; twelve different pictures in all."""
    height, width = SIZES[number % 3]
    return FEW | {"height": height, "width": width, "prompt": PROMPTS[number // 3 % 3], "seed": number % 12}


def resident_bytes() -> int:
    """Memory of this process."""
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * 4096


@pytest.mark.slow
def test_four_threads_get_their_own_pictures_in_three_sizes_with_level_memory(demo: Bundle) -> None:
    alone = {}
    with lssgen.load(demo.folder, threads=1) as pipeline:
        for number in range(36):
            alone[number] = pipeline(**asked(number)).latents
    with lssgen.load(demo.folder, threads=1) as pipeline:
        memory: list[int] = []
        wrong = paint_all(pipeline, alone, memory)
    assert wrong == []
    assert len(memory) == PICTURES
    # Everything is there after the first quarter; a leak of one latent a picture would be 20 MB over the rest.
    quarter, end = max(memory[: PICTURES // 4]), max(memory[-PICTURES // 4 :])
    assert end - quarter < 8e6, f"memory grew from {quarter / 1e6:.0f} to {end / 1e6:.0f} MB"


def paint_all(pipeline: Pipeline, alone: dict[int, Array], memory: list[int]) -> list[int]:
    """Numbers of the requests that got another picture than they get alone."""
    numbers: Iterator[int] = count()
    wrong: list[int] = []
    turn = threading.Lock()

    def serve() -> None:
        while True:
            with turn:
                number = next(numbers)
            if number >= PICTURES:
                return
            same = np.array_equal(pipeline(**asked(number)).latents, alone[number % 36])
            with turn:
                memory.append(resident_bytes())
                if not same:
                    wrong.append(number)

    threads = [threading.Thread(target=serve) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return wrong
