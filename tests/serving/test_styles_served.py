"""LoRAs as models: "demo@style" is painted with the LoRA in the weights, beside "demo", which never sees it."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import lssgen
from lssgen import paths
from lssgen.bundle import Bundle
from lssgen.errors import ModelError, RefusedError
from lssgen.lora.asked import Lora
from lssgen.lora.styled import styled
from lssgen.runtime import Options
from lssgen.serving import ImageRequest, ServerOptions

QUERY = "transformer.transformer_blocks.0.attn.to_q"
WORDS = Options(num_inference_steps=4, height=128, width=128, min_resolution=64, seed=3)


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    down, up = (rng.standard_normal(shape, np.float32) for shape in ((2, 160), (160, 2)))
    save_file({f"{QUERY}.lora_A.weight": down, f"{QUERY}.lora_B.weight": up}, tmp_path / "style.safetensors")
    return tmp_path / "style.safetensors"


def served(demo: Bundle, **words: Any) -> lssgen.Server:
    options = ServerOptions(batches=(1, 2), sizes=((128, 128),))
    return lssgen.Server({"demo": demo.folder}, engine="onnxruntime", threads=1, options=options, **words)


def alone(folder: Path) -> bytes:
    with lssgen.load(folder, engine="onnxruntime", threads=1) as pipeline:
        return pipeline("a red star", **WORDS).pictures[0].latent.tobytes()


def test_styles_and_the_plain_model_are_painted_together_and_each_is_what_it_is_alone(demo: Bundle, lora: Path) -> None:
    loras = {"style": lora, "mild": f"{lora}:0.1", "made": Lora(lora, -1)}
    names = ["demo", "demo@style", "demo@mild", "demo@made", "best@style", "demo"]
    with served(demo, loras=loras, aliases={"best": "demo"}) as server:
        named = [(model.name, bool(model.folder)) for model in server.models()]
        tickets = [server.submit(ImageRequest(prompt="a red star", model=name, options=WORDS)) for name in names]
        painted = [ticket.result(60).pictures[0].latent.tobytes() for ticket in tickets]
        models = [model.name for model in server.models()]
    folders = [styled(demo, Lora(lora, scale), paths.styles()).folder for scale in (1.0, 0.1, -1.0)]
    expected = [alone(folder) for folder in (demo.folder, *folders)]
    assert len(set(expected)) == 4
    assert painted == [*expected, expected[1], expected[0]]
    assert named == [("demo", True), ("demo@style", False), ("demo@mild", False), ("demo@made", False)]
    assert models == ["demo", "demo@style", "demo@mild", "demo@made"]


def test_a_file_among_the_users_loras_is_a_style_of_every_model(
    demo: Bundle, lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LSSGEN_HOME", str(tmp_path / "home"))
    with served(demo) as server:
        assert server.wait_ready(60)
        with pytest.raises(RefusedError, match="there is no model 'demo@late'"):
            server.model("demo@late")
        paths.loras().mkdir(parents=True)
        lora.rename(paths.loras() / "late.safetensors")
        assert server.model("demo@late").name == "demo@late"
        late = ImageRequest(prompt="a", model="demo@late", options=WORDS)
        assert server.quote(late).alone_seconds is not None, "its calls take as long as the model's own"
        assert server.paint("a red star", model="demo@late", **WORDS).model == "demo@late"


def test_many_who_ask_for_a_style_at_once_have_it_made_once(
    demo: Bundle, lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LSSGEN_HOME", str(tmp_path / "home"))
    with served(demo, loras={"style": lora}) as server, ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: server.model("demo@style").folder, range(8)))
    assert len(set(found)) == 1
    assert len([path for path in paths.styles().iterdir() if path.is_dir()]) == 1


@pytest.mark.parametrize(
    "style", ["", "none", "x" * 300, "é" * 60, "a\0b", ".", "..", ".x", "a/b", "../../x", "a@b", "\ud800"]
)
def test_names_that_lead_nowhere_are_no_models(demo: Bundle, style: str) -> None:
    with served(demo) as server, pytest.raises(RefusedError, match="there is no model") as refusal:
        server.model(f"demo@{style}")
    assert (refusal.value.code, refusal.value.param) == ("unknown_model", "model")


def test_a_lora_that_does_not_fit_is_refused_to_its_callers_alone(demo: Bundle, tmp_path: Path) -> None:
    save_file({"unet.x.lora_A.weight": np.ones((1, 2), np.float32)}, tmp_path / "other.safetensors")
    with served(demo, loras={"other": tmp_path / "other.safetensors"}) as server:
        with pytest.raises(RefusedError, match=r"demo@other: .*other\.safetensors") as refusal:
            server.submit(ImageRequest(prompt="a", model="demo@other"))
        assert (refusal.value.code, refusal.value.param) == ("broken_model", "model")
        assert server.paint("a red star", **WORDS).pictures


@pytest.mark.parametrize(
    ("loras", "said"),
    [
        ({"style": "nowhere.safetensors"}, "there is no LoRA"),
        ({"style": "style.safetensors:nan"}, "is not a finite number"),
        ({"a@b": "{lora}"}, "cannot name a LoRA"),
        ({"../b": "{lora}"}, "cannot name a LoRA"),
        ({"": "{lora}"}, "cannot name a LoRA"),
    ],
)
def test_loras_that_cannot_be_asked_for_are_refused_at_the_start(
    demo: Bundle, lora: Path, loras: dict[str, str], said: str
) -> None:
    with pytest.raises(ModelError, match=said):
        served(demo, loras={name: file.format(lora=lora) for name, file in loras.items()})
