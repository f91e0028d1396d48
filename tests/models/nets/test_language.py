"""Language models as text encoders: the hidden states of transformers, from the part of the model that makes them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from factory import liven
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
)

from lssgen.errors import ModelError
from lssgen.export.weights import open_weights
from lssgen.export.writer import weightless, write_graph
from lssgen.models.nets.language import LanguageText, see_size

WORDS, LAYERS, WIDTH = 50, 4, 32

SIZES: dict[str, Any] = {
    "vocab_size": WORDS, "hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": LAYERS,
    "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0,
}  # fmt: skip

CLOSE = 1e-5
"""Relative L2 of float32 in another order of summation, through four layers."""


def qwen3(cls: Any = Qwen3ForCausalLM) -> Any:
    return cls(Qwen3Config(**SIZES, head_dim=8))


def qwen25_vl() -> Any:
    vision = {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "out_hidden_size": WIDTH}
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(text_config={**SIZES, "rope_parameters": rope}, vision_config=vision)
    )


def mistral3() -> Any:
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    text = {**SIZES, "model_type": "mistral", "head_dim": 8, "sliding_window": None}
    return Mistral3ForConditionalGeneration(
        Mistral3Config(text_config=text, vision_config={**vision, "model_type": "pixtral", "head_dim": 8})
    )


MODELS: dict[str, Callable[[], Any]] = {
    "qwen3": qwen3,
    "qwen3 without a head": lambda: qwen3(Qwen3Model),
    "qwen2.5-vl": qwen25_vl,
    "mistral3": mistral3,
}


def made(name: str) -> Any:
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    liven(model)
    return model


def prompts(side: str = "right") -> tuple[Tensor, Tensor]:
    """Two prompts, of 7 and of 4 tokens."""
    ids = torch.randint(1, WORDS, (2, 7), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    mask[1, slice(4, None) if side == "right" else slice(0, 3)] = 0
    return ids * mask, mask


def off(came: Tensor, wanted: Tensor) -> float:
    return float((came - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("layers", [(-2,), (-1,), (0,), (1, 2, 3), (3, 1)])
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_states_are_those_of_transformers_filling_included(name: str, layers: tuple[int, ...]) -> None:
    model, (ids, mask) = made(name), prompts()
    states = model(ids, attention_mask=mask, output_hidden_states=True).hidden_states
    came, counted = LanguageText(model, layers)(ids, mask)
    assert off(came, torch.cat([states[layer] for layer in layers], -1)) < CLOSE
    assert torch.equal(counted, mask.float())


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_filling_on_the_left_changes_nothing_behind_it(name: str) -> None:
    model, (ids, mask) = made(name), prompts("left")
    states = model(ids, attention_mask=mask, output_hidden_states=True).hidden_states[-2]
    text = LanguageText(model, (-2,))
    came, _ = text(ids, mask)
    alone, _ = text(ids[1:, 3:], mask[1:, 3:])
    assert off(came[mask == 1], states[mask == 1]) < CLOSE
    assert torch.isfinite(came).all()
    assert off(came[1:, 3:], alone) < CLOSE


@torch.no_grad()
def test_the_beginning_of_a_template_is_left_out() -> None:
    ids, mask = prompts()
    came, counted = LanguageText(made("qwen3"), (-2,), drop=2)(ids, mask)
    whole, _ = LanguageText(made("qwen3"), (-2,))(ids, mask)
    assert torch.equal(came, whole[:, 2:])
    assert torch.equal(counted, mask[:, 2:].float())


@pytest.mark.parametrize(("layers", "left"), [((-2,), 3), ((1, 2), 2), ((-1,), 4)])
@pytest.mark.parametrize("name", MODELS)
def test_only_what_is_read_is_kept_and_looked_for(
    tmp_path: Path, name: str, layers: tuple[int, ...], left: int
) -> None:
    model = made(name)
    model.save_pretrained(tmp_path)  # under the names of the published files, with head and vision
    with weightless(torch.float32):
        text = LanguageText(MODELS[name](), layers)
    fitted = open_weights({"text_encoder": tmp_path}).fit(text)
    assert sorted({part.split(".")[2] for part in fitted if ".layers." in part}) == [str(n) for n in range(left)]
    assert not any(word in key for key in fitted for word in ("lm_head", "visual", "vision"))
    assert ("text_encoder.norm.weight" in fitted) == (left == LAYERS)


def test_a_layer_that_should_be_there_is_missed(tmp_path: Path) -> None:
    tensors = {key: value for key, value in made("qwen3").state_dict().items() if ".layers.1.mlp" not in key}
    save_file(
        {key: value.clone() for key, value in tensors.items() if "lm_head" not in key}, tmp_path / "m.safetensors"
    )
    with weightless(torch.float32):
        text = LanguageText(qwen3(), (-2,))
    with pytest.raises(ModelError, match=r"missing \(3\): text_encoder\.layers\.1\.mlp"):
        open_weights({"text_encoder": tmp_path / "m.safetensors"}).fit(text)


@pytest.mark.parametrize("layers", [(5,), (1, -6)])
def test_layers_that_there_are_not_are_refused(layers: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match="but the text encoder has 4 layers"):
        LanguageText(made("qwen3"), layers)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"hidden_size": 1024}, "of another size: its hidden states have 1024 numbers a token, 3 of them make 3072"),
        ({"num_hidden_layers": 5}, "hidden states of layer 9 are read, but the text encoder has 5 layers"),
        ({"sliding_window": 64, "layer_types": ["sliding_attention"]}, "reaches back 64 tokens only"),
    ],
)
def test_a_text_encoder_of_another_size_is_refused(config: dict[str, Any], words: str) -> None:
    right = {"hidden_size": 2560, "num_hidden_layers": 36, "sliding_window": None, "layer_types": ["full_attention"]}
    see_size(right, 7680, (9, 18, 27), 512)
    with pytest.raises(ModelError, match=words):
        see_size({**right, **config}, 7680, (9, 18, 27), 512)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_the_graph_takes_any_number_of_prompts_and_tokens(tmp_path: Path, name: str) -> None:
    made(name).save_pretrained(tmp_path / "encoder")
    with weightless(torch.float32):
        text = LanguageText(MODELS[name](), (1, -2), drop=1)
    ids, mask = prompts()
    written = write_graph(
        text,
        {"input_ids": ids, "attention_mask": mask},
        ("prompt_embeds", "prompt_mask"),
        {
            "input_ids": ("batch", "asked"),
            "attention_mask": ("batch", "asked"),
            "prompt_embeds": ("batch", "tokens", 2 * WIDTH),
            "prompt_mask": ("batch", "tokens"),
        },
        tmp_path / "text.onnx",
        open_weights({"text_encoder": tmp_path / "encoder"}),
    )
    session = onnxruntime.InferenceSession(written.files[0], providers=["CPUExecutionProvider"])
    whole = LanguageText(made(name), (1, -2), drop=1)
    for ids, mask in (prompts(), prompts("left"), (torch.ones(3, 12, dtype=torch.int64),) * 2):
        came = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
        with torch.no_grad():
            wanted = whole(ids, mask)
        for got, want in zip(came, wanted, strict=True):
            assert off(torch.from_numpy(np.asarray(got)), want) < CLOSE
