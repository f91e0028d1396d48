"""LoRAs in a model's slots: requests with unlike styles share calls, and the weights are there once."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from slotting import factors_of, lora_for, pairs

import lssgen
from lssgen import paths
from lssgen.bundle import Bundle
from lssgen.engines.registry import open_backend
from lssgen.errors import RefusedError
from lssgen.ports import Array
from lssgen.runtime import Options, Pipeline
from lssgen.serving import ImageRequest, ServerOptions

WORDS = Options(num_inference_steps=4, height=128, width=128, min_resolution=64, seed=3, scaling_space="latent")


def served(bundle: Bundle, loras: Mapping[str, Path | str], **words: Any) -> lssgen.Server:
    options = ServerOptions(batches=(1, 2, 4), sizes=((128, 128),), **words)
    return lssgen.Server({"sd3": bundle.folder}, engine="onnxruntime", threads=1, options=options, loras=loras)


def alone(bundle: Bundle, *loras: str) -> Array:
    with Pipeline(bundle, open_backend("onnxruntime", threads=1)) as pipeline:
        return pipeline("a red circle", **{**WORDS, "loras": loras}).latents[0]


def test_requests_with_unlike_styles_share_calls_and_are_painted_as_alone(
    slotted: Bundle, loras: Mapping[str, Path]
) -> None:
    named = {"ink": f"{loras['ink']}:0.6", "oil": loras["oil"]}
    with served(slotted, named) as server:
        assert server.wait_ready(60)
        models = ("sd3", "sd3@ink", "sd3@oil", "sd3@ink")
        before = server.stats().calls
        tickets = [server.submit(ImageRequest(prompt="a red circle", model=model, options=WORDS)) for model in models]
        answers = [ticket.result() for ticket in tickets]
        calls = server.stats().calls - before
        assert [answer.model for answer in answers] == list(models)
        # At most one stage of the first is under way before the others come.
        assert calls < sum(answer.usage.steps for answer in answers)
        assert sum(model.loaded for model in server.models()) == 3, "one model, by three names"
        assert server.stats().loaded_bytes == server.model("sd3").bytes
    wanted = [alone(slotted), alone(slotted, f"{loras['ink']}:0.6"), alone(slotted, str(loras["oil"]))]
    for answer, latent in zip(answers, (*wanted, wanted[1]), strict=True):
        np.testing.assert_array_equal(answer.pictures[0].latent, latent)


def test_styles_beyond_the_slots_wait_for_those_that_are_painted(slotted: Bundle, tmp_path: Path) -> None:
    layers = factors_of(slotted).layers
    named = {f"s{seed}": lora_for(layers, tmp_path / f"s{seed}.safetensors", 4, seed) for seed in range(5)}
    with served(slotted, named) as server:
        assert server.wait_ready(60)
        tickets = [
            server.submit(ImageRequest(prompt="a red circle", model=f"sd3@{name}", options=WORDS))
            for name in (*named, *named)
        ]
        answers = [ticket.result() for ticket in tickets]
    for answer, path in zip(answers, (*named.values(), *named.values()), strict=True):
        np.testing.assert_array_equal(answer.pictures[0].latent, alone(slotted, str(path)))


def test_a_style_that_comes_later_is_found_and_its_draft_goes_on_with_it(
    slotted: Bundle, loras: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LSSGEN_HOME", str(tmp_path / "home"))
    paths.loras().mkdir(parents=True)
    (paths.loras() / "late.safetensors").write_bytes(loras["oil"].read_bytes())
    with served(slotted, {}) as server:
        asked = ImageRequest(prompt="a red circle", model="sd3@late", options=WORDS, draft=True)
        draft = server.submit(asked).result()
        answer = server.refine(draft.draft, [0]).result()
        assert answer.model == "sd3@late"
        assert server.model("sd3@late").folder == str(slotted.folder)
        assert not paths.styles().exists()
    np.testing.assert_array_equal(answer.pictures[0].latent, alone(slotted, str(loras["oil"])))


def test_a_lora_that_the_slots_do_not_take_is_merged_into_weights_of_its_own(
    slotted: Bundle, loras: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LSSGEN_HOME", str(tmp_path / "home"))
    with served(slotted, {"vast": loras["vast"]}) as server:
        answer = server.paint("a red circle", model="sd3@vast", **WORDS)
        assert Path(server.model("sd3@vast").folder).parent == paths.styles()
    assert not np.array_equal(answer.pictures[0].latent, alone(slotted))


def test_callers_name_no_files_of_the_server(slotted: Bundle, loras: Mapping[str, Path]) -> None:
    with served(slotted, {}) as server, pytest.raises(RefusedError, match="loras cannot be chosen") as refusal:
        server.submit(ImageRequest(prompt="a", options={**WORDS, "loras": (str(loras["ink"]),)}))
    assert refusal.value.param == "loras"


def test_a_lora_that_is_gone_ends_its_own_request_alone(slotted: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "style.safetensors"
    save_file(pairs(factors_of(slotted).layers, 2), path)
    with served(slotted, {"style": path}) as server:
        assert server.paint("a red circle", model="sd3@style", **WORDS).pictures
        path.unlink()
        with pytest.raises(RefusedError, match="there is no LoRA"):
            server.paint("a red circle", model="sd3@style", **WORDS)
        assert server.paint("a red circle", **WORDS).pictures
