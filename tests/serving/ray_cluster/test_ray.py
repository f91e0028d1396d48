"""A real Ray cluster on this machine, with replicas on the CPU; one of them is killed while it paints."""

import base64
import json
import threading
import time
import warnings
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import openai
import pytest
from PIL import Image
from toy_bundle import toy_in_stages

import lssgen
from lssgen.bundle import Bundle
from lssgen.cli import main
from lssgen.jsons import read_json
from lssgen.runtime.record import RunRecord

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray's own, of pydantic
    ray = pytest.importorskip("ray", reason='Ray is not installed; pip install "lssgen[ray]" brings it')
    from ray import serve

    from lssgen.serving.ray import app

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

PORT = 8765
URL = f"http://127.0.0.1:{PORT}"
FOX = "a fox"


@pytest.fixture(scope="module")
def small(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return toy_in_stages(toy, tmp_path_factory.mktemp("ray") / "toy")


@pytest.fixture(scope="module")
def cluster() -> Generator[None]:
    ray.init(num_cpus=8, include_dashboard=False, object_store_memory=200 * 2**20, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    yield
    serve.shutdown()
    ray.shutdown()


def arguments(bundle: Bundle, **more: Any) -> dict[str, Any]:
    threads = '{"threads": 1}'
    return {
        "bundles": f"toy={bundle.folder}",
        "engine_options": threads,
        "num_cpus": "0.1",
        "drain_seconds": "2",
        **more,
    }


@pytest.fixture(scope="module")
def served(cluster: None, small: Bundle) -> str:
    del cluster
    serve.run(app(arguments(small, min_replicas="2", max_replicas="2")), name="lssgen", route_prefix="/")
    return URL


@pytest.fixture
def client(served: str) -> Generator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served}/v1", api_key="x", max_retries=0) as opened:
        yield opened


def picture(data: str | None) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(base64.b64decode(data or ""))))


def test_a_picture_is_the_one_that_the_pipeline_paints(client: openai.OpenAI, small: Bundle) -> None:
    with lssgen.load(small.folder, threads=1) as pipeline:
        expected = pipeline(FOX, seed=7).images[0]
    for _ in range(4):  # whichever replica it is
        (answer,) = client.images.generate(prompt=FOX, extra_body={"seed": 7}).data or []
        assert np.array_equal(picture(answer.b64_json), np.asarray(expected))


def test_a_stream_sends_the_small_stage_first(client: openai.OpenAI) -> None:
    events = list(client.images.generate(prompt=FOX, stream=True, partial_images=1))
    assert [event.type for event in events] == ["image_generation.partial_image", "image_generation.completed"]
    assert picture(events[0].b64_json).shape == (32, 32, 3)


def test_refusals_keep_their_form(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.generate(prompt=FOX, size="61x64")  # type: ignore[arg-type]
    assert (caught.value.code, caught.value.param) == ("invalid_size", "size")


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        ({"response_format": "url"}, {}),
        ({}, {"prefer": "respond-async"}),
        ({}, {"idempotency-key": "order-1"}),
    ],
)
def test_what_another_replica_would_not_know_is_refused(
    served: str, body: dict[str, str], headers: dict[str, str]
) -> None:
    answer = httpx2.post(f"{served}/v1/images/generations", json={"prompt": FOX, **body}, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "not_supported")
    assert httpx2.post(f"{served}/v1/jobs", json={"prompt": FOX}).status_code == 404


def counted(name: str) -> float:
    """A count of all replicas: their metrics, of whichever answers, over some tries."""
    found: dict[float, float] = {}
    for _ in range(20):
        text = httpx2.get(f"{URL}/metrics").text
        values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        found[float(values["process_start_time_seconds"])] = float(values.get(name, 0))
    return sum(found.values())


def test_a_client_that_leaves_takes_its_request_back(served: str) -> None:
    before = counted("lssgen_cancelled_total")
    body = {"prompt": FOX, "num_inference_steps": 200, "n": 10, "stream": True, "size": "512x512"}
    with httpx2.stream("POST", f"{served}/v1/images/generations", json=body) as answer:
        assert answer.status_code == 200
    end = time.monotonic() + 30
    while counted("lssgen_cancelled_total") == before:
        assert time.monotonic() < end
        time.sleep(0.2)


def test_a_bundle_that_is_asked_for_by_header_is_found(served: str) -> None:
    body = {"prompt": FOX, "model": "toy"}
    headers = {"serve_multiplexed_model_id": "toy"}
    for _ in range(3):
        assert httpx2.post(f"{served}/v1/images/generations", json=body, headers=headers).status_code == 200


def test_a_replica_that_is_killed_under_load_costs_its_requests_another_try(served: str) -> None:
    words = {"num_inference_steps": 200}
    with openai.OpenAI(base_url=f"{served}/v1", api_key="x", max_retries=8) as client, ThreadPoolExecutor(6) as pool:

        def paint(seed: int) -> int:
            answer = client.images.generate(prompt=FOX, size="256x256", extra_body={"seed": seed, **words})
            return ((answer.data or [])[0].model_extra or {})["seed"]

        painting = [pool.submit(paint, seed) for seed in range(48)]
        time.sleep(0.5)
        names = [one["name"] for one in ray.util.list_named_actors(all_namespaces=True)]
        victim = next(name for name in names if "lssgen#lssgen#" in name)
        ray.kill(ray.get_actor(victim, namespace="serve"), no_restart=True)
        assert not all(one.done() for one in painting), "it was killed too late"
        assert [one.result(180) for one in painting] == list(range(48))


def test_too_much_is_refused_by_the_proxy_with_a_time_to_come_again(served: str, small: Bundle) -> None:
    del served
    words = arguments(small, max_ongoing="1", max_queued="1", name="narrow")
    serve.run(app(words), name="narrow", route_prefix="/narrow")
    body = {"prompt": FOX, "num_inference_steps": 200, "size": "256x256"}
    with ThreadPoolExecutor(8) as pool:
        ask = lambda _: httpx2.post(f"{URL}/narrow/v1/images/generations", json=body, timeout=120)  # noqa: E731
        answers = list(pool.map(ask, range(8)))
    serve.delete("narrow")
    assert {answer.status_code for answer in answers} == {200, 429}
    assert all(answer.headers["retry-after"] == "2" for answer in answers if answer.status_code == 429)


def test_more_pixels_that_wait_are_more_replicas(served: str, small: Bundle) -> None:
    del served
    words = arguments(small, max_replicas="2", target_pixels="10000", name="wide")
    serve.run(app(words), name="wide", route_prefix="/wide")
    body = {"prompt": FOX, "num_inference_steps": 200, "size": "256x256", "n": 8}
    enough = threading.Event()

    def load() -> None:
        while not enough.is_set():
            httpx2.post(f"{URL}/wide/v1/images/generations", json=body, timeout=300)

    with ThreadPoolExecutor(4) as pool:
        for _ in range(4):
            pool.submit(load)
        end = time.monotonic() + 90
        states: dict[Any, int] = {}
        while sum(states.values()) < 2 and time.monotonic() < end:
            time.sleep(0.5)
            states = dict(serve.status().applications["wide"].deployments["wide"].replica_states)
        enough.set()
    serve.delete("wide")
    assert sum(states.values()) == 2


def test_a_prompt_file_is_painted_by_workers_and_goes_on(cluster: None, small: Bundle, tmp_path: Path) -> None:
    del cluster
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"fox {number}"}) + "\n" for number in range(6)))
    words = ["run", "--bundle", str(small.folder), "--prompts", str(file), "--threads", "1", "--seed", "3", "--quiet"]
    assert main([*words, "--outdir", str(tmp_path / "ray"), "--ray", "local", "--ray-workers", "2"]) == 0
    assert main([*words, "--outdir", str(tmp_path / "here")]) == 0
    for number in range(6):
        one, other = (tmp_path / place / f"{number:05d}" / "samples" / "0000.png" for place in ("ray", "here"))
        assert np.array_equal(np.asarray(Image.open(one)), np.asarray(Image.open(other)))
    assert read_json(tmp_path / "ray" / "run.json", RunRecord).finished
    made = (tmp_path / "ray" / "00000" / "samples" / "0000.png").stat().st_mtime_ns
    (tmp_path / "ray" / "00003" / "result.json").unlink()
    assert main([*words, "--outdir", str(tmp_path / "ray"), "--ray", "local"]) == 0
    assert (tmp_path / "ray" / "00003" / "result.json").exists()
    assert (tmp_path / "ray" / "00000" / "samples" / "0000.png").stat().st_mtime_ns == made


def test_a_cluster_that_is_not_there_is_told(
    small: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionError("nobody listens")

    monkeypatch.setattr(ray, "init", refuse)
    file = tmp_path / "p.jsonl"
    file.write_text('{"prompt": "a"}\n')
    words = ["run", "--bundle", str(small.folder), "--prompts", str(file), "--outdir", str(tmp_path / "o")]
    assert main([*words, "--ray", "ray://nowhere:1"]) == 1
    assert "no Ray cluster answers at ray://nowhere:1" in capsys.readouterr().err
