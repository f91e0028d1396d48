"""Every way from stage to stage paints what the prompt says, on the demo model: an export, and forty pictures."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import lssgen
from lssgen.bundle import Bundle
from lssgen.export.config import ExportConfig
from lssgen.export.export import export
from lssgen.plan.transitions import TRANSITIONS

pytestmark = pytest.mark.slow  # a whole export, with autoencoders within three more graphs

PROMPT = "a red star above a blue circle on a white background"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The demo model with all transitions; its super-resolution network is a cubic resize."""
    folder = tmp_path_factory.mktemp("transitions")
    axes = ("batch", 3, "height", "width")
    graph = helper.make_graph(
        [helper.make_node("Resize", ["image", "", "scales"], ["large"], mode="cubic", cubic_coeff_a=-0.5)],
        "sr",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, axes)],
        [helper.make_tensor_value_info("large", TensorProto.FLOAT, ("batch", 3, "tall", "wide"))],
        [helper.make_tensor("scales", TensorProto.FLOAT, (4,), (1.0, 1.0, 2.0, 2.0))],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "x2.onnx")
    spaces: Any = tuple(space for space in TRANSITIONS if space != "sr")
    config = ExportConfig(
        model="demo",
        output=folder / "demo",
        transitions=spaces,
        sr=folder / "x2.onnx",
        probe="small",
        threads=1,
    )
    return export(config)


@pytest.mark.parametrize("space", TRANSITIONS)
def test_a_transition_paints_what_the_prompt_says_to_the_end_and_left_early(
    bundle: Bundle, space: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples" / "demo_model"))
    from score import score

    with lssgen.load(bundle.folder, engine="onnxruntime", threads=1) as pipeline:
        for words in ({"hand_off": 0.0}, {"hand_off": "auto"}, {"hand_off": "auto", "noise_field": "picture"}):
            image = pipeline(PROMPT, seed=1, scaling_space=space, shorten=True, **words).images[0]  # pyright: ignore
            assert score(np.asarray(image), PROMPT).right, (space, words)
