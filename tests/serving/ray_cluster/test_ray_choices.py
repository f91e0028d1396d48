"""Arguments of the Ray application, and its autoscaler's arithmetic; no cluster is needed."""

import warnings
from types import SimpleNamespace
from typing import Any

import pytest

from lssgen.commands.run import build_parser
from lssgen.errors import ServingError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray's own, of pydantic
    pytest.importorskip("ray", reason='Ray is not installed; pip install "lssgen[ray]" brings it')
    from lssgen.serving.ray.application import PIXELS, replicas_for
from lssgen.serving.ray.choices import choices_from


def test_arguments_are_text_or_values() -> None:
    choices = choices_from(
        {
            "bundles": "sd3=/m/a,/m/flux",
            "loras": "ink=/l/ink.safetensors:0.8",
            "max_replicas": "4",
            "target_pixels": 1e6,
            "num_gpus": "0.5",
        }
    )
    assert choices.bundles == {"sd3": "/m/a", "flux": "/m/flux"}
    assert choices.loras == {"ink": "/l/ink.safetensors:0.8"}
    assert (choices.max_replicas, choices.target_pixels, choices.gpus) == (4, 1e6, 0.5)
    assert [
        choices_from({"bundles": {"a": "/a"}, "engine": engine}).gpus for engine in ("tensorrt", "openvino", "auto", "")
    ] == [1, 0, 0, 0]
    assert choices_from({"bundles": "/a", "server_options": '{"sizes": [[64, 64]]}'}).gpus == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({}, "bundles are needed"),
        ({"bundles": "/a", "speed": "3"}, "speed cannot be chosen"),
        ({"bundles": "/a", "max_replicas": "many"}, "make no sense"),
        ({"bundles": "/a", "min_replicas": "3"}, "min_replicas <= max_replicas"),
        ({"bundles": "/a", "target_pixels": "0"}, "above 0"),
        ({"bundles": "/a", "engine_options": "{"}, "engine_options"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(words: dict[str, Any], said: str) -> None:
    with pytest.raises(ServingError, match=said):
        choices_from(words)


@pytest.mark.parametrize(
    ("pixels", "requests", "now", "wanted"),
    [({}, 0, 3, 1), ({}, 5, 2, 2), ({"a": 100.0}, 1, 1, 1), ({"a": 900.0, "b": 200.0}, 9, 2, 2), ({"a": 9e9}, 9, 1, 8)],
)
def test_replicas_are_as_many_as_their_pixels_ask_for(
    pixels: dict[str, float], requests: int, now: int, wanted: int
) -> None:
    context = SimpleNamespace(
        aggregated_metrics={PIXELS: pixels},
        config=SimpleNamespace(target_ongoing_requests=1000.0),
        total_num_requests=requests,
        current_num_replicas=now,
        capacity_adjusted_min_replicas=1,
        capacity_adjusted_max_replicas=8,
    )
    assert replicas_for(context)[0] == wanted


def test_ray_is_for_prompt_files(capsys: pytest.CaptureFixture[str]) -> None:
    from lssgen.cli import main

    assert build_parser().parse_args(["--ray", "auto"]).ray == "auto"
    with pytest.raises(SystemExit):
        main(["run", "a fox", "--ray", "auto"])
    assert "--ray is for prompt files" in capsys.readouterr().err
