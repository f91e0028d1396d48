"""Load on `lssgen serve`, on loopback: many clients, some of which leave, hurry or talk nonsense; overload; a kill.

    python benchmarks/serving_load.py --requests 10000 --clients 200 --output benchmarks/results/serving_load.json

The demo model at tiny sizes, mixed sizes and steps; a tenth of the requests is left by its client, a tenth has a
deadline, one in a hundred is malformed. Every request must be answered exactly once, with its own picture (its seed and
prompt are in the file; one in fifty is compared with what the pipeline paints) or with a clear refusal. Then a burst,
of which what is too much must be refused at once; then jobs, a kill, and a restart that must finish them. Prints
tables; ends with status 1 where anything is not as promised.
"""

import argparse
import asyncio
import base64
import json
import os
import platform
import random
import re
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
from PIL import Image

import lssgen
from lssgen.demo import write_demo_bundle

PROMPT = "a red star above a blue circle on a white background"
MALFORMED = (
    {"prompt": ""},
    {"prompt": PROMPT, "n": 99},
    {"prompt": PROMPT, "size": "31x32"},
    {"prompt": PROMPT, "sneed": 1},
    {"prompt": 7},
)
TINY: dict[str, Any] = {"min_resolution": 32, "shorten": False}
"""Words that make stages of 32 px, with all steps."""

ALWAYS = ("--engine", "onnxruntime", "--port", "0", "--log", "off")

SEED_S, COMPARED = 20261126, 50


@dataclass
class Tally:
    """What came of the requests.

    Attributes:
        seconds: Times of those that were answered, by class.
        outcomes: Answers, by class and code.
        wrong: What should not have happened.
        pictures: Some of the pictures, with what they were asked for.
        again: Tries after a refusal that asked for one.
        memory: (seconds, bytes) of the server.
    """

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    outcomes: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    wrong: list[str] = field(default_factory=list)
    pictures: list[tuple[dict[str, Any], bytes]] = field(default_factory=list)
    again: int = 0
    memory: list[tuple[float, int]] = field(default_factory=list)


def requests_of(count: int) -> list[tuple[str, dict[str, Any]]]:
    """(class, body) of every request."""
    draw = random.Random(SEED_S)
    found: list[tuple[str, dict[str, Any]]] = []
    for seed in range(count):
        side, steps = draw.choice((32, 48, 64)), draw.choice((2, 3, 4))
        body = {"prompt": f"a red star {seed}", "seed": seed, "size": f"{side}x{side}", "num_inference_steps": steps}
        body |= TINY
        share = draw.random()
        if share < 0.01:
            found.append(("malformed", dict(draw.choice(MALFORMED))))
        elif share < 0.11:
            found.append(("left", body))
        elif share < 0.21:
            found.append(("deadline", {**body, "deadline_ms": draw.choice((20, 200, 1000, 5000))}))
        else:
            found.append((f"{side} px, {steps} steps", body))
    return found


async def ask(client: httpx2.AsyncClient, tally: Tally, number: int, kind: str, body: dict[str, Any]) -> None:
    """One request, from beginning to end, as its client would."""
    began = time.monotonic()
    for _ in range(200):
        call = client.post("/v1/images/generations", json=body)
        if kind == "left":
            try:
                answer = await asyncio.wait_for(call, random.Random(number).uniform(0.001, 0.2))
            except TimeoutError:
                tally.outcomes[kind]["left"] += 1
                return
        else:
            answer = await call
        if answer.status_code != 429:
            break
        tally.again += 1
        await asyncio.sleep(float(answer.headers["retry-after-ms"]) / 1000 * random.Random(number).uniform(1, 2))
    tally.seconds[kind].append(time.monotonic() - began)
    see(tally, number, kind, body, answer)


def see(tally: Tally, number: int, kind: str, body: dict[str, Any], answer: httpx2.Response) -> None:
    """Look at an answer: is it the picture of this request, or a refusal that this class may get?"""
    if answer.status_code == 200:
        tally.outcomes[kind]["picture"] += 1
        (one,) = answer.json()["data"]
        data = base64.b64decode(one["b64_json"])
        said = json.loads(Image.open(BytesIO(data)).text["parameters"])  # type: ignore[attr-defined]
        if (said["prompt"], said["seed"], one["seed"]) != (body["prompt"], body["seed"], body["seed"]):
            tally.wrong.append(f"request {number} got the picture of {said['prompt']!r}, seed {said['seed']}")
        if number % COMPARED == 0 and kind != "deadline":
            tally.pictures.append((body, data))
        return
    code = answer.json()["error"]["code"]
    tally.outcomes[kind][code] += 1
    allowed = {"malformed": 400, "deadline": (400, 504)}.get(kind, ())
    if answer.status_code not in np.atleast_1d(allowed):
        tally.wrong.append(f"request {number} ({kind}) got {answer.status_code} {code}: {answer.text[:200]}")
    if kind == "deadline" and code not in ("deadline_impossible", "deadline_passed"):
        tally.wrong.append(f"request {number} with a deadline got {code}")


async def load(url: str, count: int, clients: int, tally: Tally) -> float:
    """All requests, by so many clients; the seconds that it took."""
    waiting = list(enumerate(requests_of(count)))[::-1]
    limits = httpx2.Limits(max_connections=clients, max_keepalive_connections=clients)
    began = time.monotonic()
    async with httpx2.AsyncClient(base_url=url, limits=limits, timeout=300) as client:

        async def work() -> None:
            while waiting:
                number, (kind, body) = waiting.pop()
                try:
                    await ask(client, tally, number, kind, body)
                except Exception as error:
                    tally.wrong.append(f"request {number} ({kind}) failed: {type(error).__name__} {error}")

        watching = asyncio.create_task(watch(url, tally, began))
        await asyncio.gather(*(work() for _ in range(clients)))
        watching.cancel()
    return time.monotonic() - began


async def watch(url: str, tally: Tally, began: float) -> None:
    async with httpx2.AsyncClient(base_url=url, timeout=60) as client:
        while True:
            text = (await client.get("/metrics")).text
            found = re.search(r"^process_resident_memory_bytes (\S+)", text, re.MULTILINE)
            assert found is not None
            tally.memory.append((time.monotonic() - began, int(float(found[1]))))
            await asyncio.sleep(2)


async def burst(url: str, count: int, tally: Tally) -> dict[str, Any]:
    """So many requests at once: what is too much is refused at once, with a time to come again."""
    outcomes: Counter[str] = Counter()
    refused: list[float] = []
    limits = httpx2.Limits(max_connections=count)
    async with httpx2.AsyncClient(base_url=url, limits=limits, timeout=300) as client:

        async def one(seed: int) -> None:
            body = {"prompt": PROMPT, "seed": seed, "size": "32x32", "num_inference_steps": 4, **TINY}
            began = time.monotonic()
            answer = await client.post("/v1/images/generations", json=body)
            code = "picture" if answer.status_code == 200 else answer.json()["error"]["code"]
            outcomes[code] += 1
            if code != "picture":
                refused.append(time.monotonic() - began)
                if code not in ("queue_full", "too_many_requests") or "retry-after-ms" not in answer.headers:
                    tally.wrong.append(f"a request of the burst got {answer.status_code} {code}")

        await asyncio.gather(*(one(seed) for seed in range(count)))
        text = (await client.get("/metrics")).text
    if sum(outcomes.values()) != count or not refused:
        tally.wrong.append(f"of a burst of {count}, {dict(outcomes)} were answered")
    return {"requests": count, **outcomes, "refused_after_s": refused_after(text)}


def refused_after(text: str) -> str:
    """Time that nearly all refusals took, as the server measured it, without that of a process of 1000 clients."""
    named = r'route="/v1/images/generations",status="429"'
    buckets = re.findall(rf'lssgen_http_request_seconds_bucket{{le="([^"]+)",method="POST",{named}}} (\S+)', text)
    most = float(buckets[-1][1]) if buckets else 0
    return next((f"99 % within {bound} s" for bound, count in buckets if float(count) >= 0.99 * most), "none")


class Process:
    """`lssgen serve`, as a process.

    Args:
        bundle, home: Folders.
        words: Further words of the command.
    """

    def __init__(self, bundle: Path, home: Path, *words: str) -> None:
        self._command = [sys.executable, "-m", "lssgen", "serve", str(bundle), *ALWAYS, *words]
        self._environment = {**os.environ, "LSSGEN_HOME": str(home)}

    async def start(self) -> str:
        """Start it; its address, once it is ready."""
        self.process = await asyncio.create_subprocess_exec(
            *self._command, env=self._environment, stderr=asyncio.subprocess.PIPE
        )
        assert self.process.stderr is not None
        while True:
            line = (await self.process.stderr.readline()).decode()
            assert line, "the server could not begin"
            if found := re.search(r"listening at (\S+),", line):
                break
        self.said: list[str] = []
        self._reading = asyncio.create_task(self._read())
        async with httpx2.AsyncClient(base_url=found[1]) as client:
            while (await client.get("/health/ready")).status_code != 200:
                await asyncio.sleep(0.05)
        return found[1]

    async def _read(self) -> None:
        """What the server says, as it says it: a pipe that nobody reads would stop it."""
        assert self.process.stderr is not None
        while line := await self.process.stderr.readline():
            self.said.append(line.decode())

    async def stop(self, number: int) -> int:
        self.process.send_signal(number)
        return await self.process.wait()


async def kill_and_restart(server: Process, url: str, count: int, tally: Tally) -> dict[str, Any]:
    """Jobs, a kill while they are painted, a restart: each is finished, or reported as lost."""
    body = {"prompt": PROMPT, "size": "64x64", "num_inference_steps": 50, **TINY}
    async with httpx2.AsyncClient(base_url=url, timeout=60) as client:
        answers = [await client.post("/v1/jobs", json={**body, "seed": seed}) for seed in range(count)]
    jobs = [answer.json()["id"] for answer in answers]
    await server.stop(signal.SIGKILL)
    url = await server.start()
    states: Counter[str] = Counter()
    async with httpx2.AsyncClient(base_url=url, timeout=60) as client:
        end = time.monotonic() + 300
        while set(states) - {"done", "lost"} or not states:
            if time.monotonic() > end:
                tally.wrong.append(f"after a kill, jobs stay {dict(states)}")
                break
            answers = [await client.get(f"/v1/jobs/{job}") for job in jobs]
            states = Counter(answer.json().get("status", "unknown") for answer in answers)
            await asyncio.sleep(0.5)
    return {"jobs": count, **states}


def compare(bundle: Path, pictures: list[tuple[dict[str, Any], bytes]], threads: int) -> int:
    """How many pictures are not those that the pipeline paints, to the last bit."""
    different = 0
    with lssgen.load(bundle, engine="onnxruntime", threads=threads) as pipeline:
        for body, data in pictures:
            side = int(body["size"].split("x")[0])
            words = {name: body[name] for name in ("seed", "num_inference_steps", *TINY)}
            expected = pipeline(body["prompt"], width=side, height=side, **words).images[0]
            different += not np.array_equal(np.asarray(Image.open(BytesIO(data))), np.asarray(expected))
    return different


def at_share(memory: list[tuple[float, int]], share: float) -> int:
    """Megabytes of the server when so much of the time had passed."""
    return round(memory[min(int(share * len(memory)), len(memory) - 1)][1] / 1e6)


def table(tally: Tally) -> str:
    lines = ["| class | requests | p50 s | p99 s | answers |", "|---|---|---|---|---|"]
    for kind in sorted(tally.outcomes):
        seconds, outcomes = tally.seconds[kind], tally.outcomes[kind]
        p50, p99 = (f"{np.quantile(seconds, share):.2f}" if seconds else "" for share in (0.5, 0.99))
        told = ", ".join(f"{count} {name}" for name, count in outcomes.most_common())
        lines.append(f"| {kind} | {sum(outcomes.values())} | {p50} | {p99} | {told} |")
    return "\n".join(lines)


async def run(args: argparse.Namespace) -> tuple[Tally, dict[str, Any], str]:
    tally = Tally()
    with tempfile.TemporaryDirectory() as place:
        bundle = Path(place) / "demo"
        write_demo_bundle(bundle)
        words = ("--sizes", "128", "--threads", str(args.threads), "--most-requests", str(args.waiting))
        server = Process(bundle, Path(place) / "home", *words, "--state", str(Path(place) / "state"))
        url = await server.start()
        seconds = await load(url, args.requests, args.clients, tally)
        over = await burst(url, args.burst, tally)
        said = "".join(server.said)
        killed = await kill_and_restart(server, url, args.jobs, tally)
        status = await server.stop(signal.SIGTERM)
        if status:
            tally.wrong.append(f"the server ended with status {status}")
        different = compare(bundle, tally.pictures, args.threads)
    if different:
        tally.wrong.append(f"{different} of {len(tally.pictures)} pictures are not the pipeline's")
    answered = sum(sum(one.values()) for one in tally.outcomes.values())
    if answered != args.requests:
        tally.wrong.append(f"{answered} of {args.requests} requests were answered")
    report = {
        "requests": args.requests,
        "clients": args.clients,
        "seconds": round(seconds, 1),
        "requests_per_second": round(args.requests / seconds, 1),
        "tries_again": tally.again,
        "memory_mb": {f"{share:.0%}": at_share(tally.memory, share) for share in (0.1, 0.25, 0.5, 0.75, 1)},
        "burst": over,
        "kill": killed,
        "compared": len(tally.pictures),
        "wrong": tally.wrong[:20],
        "said": said.splitlines()[-80:] if tally.wrong else [],
    }
    return tally, report, table(tally)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--burst", type=int, default=1000)
    parser.add_argument("--waiting", type=int, default=250, help="requests that may wait")
    parser.add_argument("--jobs", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    _, report, rows = asyncio.run(run(args))
    machine = {"machine": platform.machine(), "cpus": os.cpu_count(), "python": platform.python_version()}
    print(rows)
    print(json.dumps({**machine, **report}, indent=2))
    if args.output:
        args.output.write_text(json.dumps({**machine, **report, "table": rows.splitlines()}, indent=2) + "\n")
    return int(bool(report["wrong"]))


if __name__ == "__main__":
    sys.exit(main())
