"""Places of words and of rows and columns, against diffusers; and the guidance that keeps lengths."""

import pytest
import torch
from diffusers import QwenImage21Transformer2DModel, QwenImageTransformer2DModel
from qwen_pipelines import kept_long

from lssgen.models.nets.qwen import QwenStep, lengths_kept
from lssgen.models.nets.qwen21 import Qwen21Step

SMALL = {
    "in_channels": 16,
    "out_channels": 4,
    "num_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "axes_dims_rope": (4, 6, 6),
}
CLOSE = 1e-6
"""The same angles in the same precision."""


@pytest.mark.parametrize(("rows", "columns"), [(4, 4), (5, 8), (9, 3), (83, 104), (512, 2)])
def test_places_are_those_of_qwen_image(rows: int, columns: int) -> None:
    net = QwenImageTransformer2DModel(**SMALL, joint_attention_dim=8)
    image, text = net.pos_embed([[(1, rows, columns)]], max_txt_seq_len=11)
    wanted = torch.cat((text, image)).repeat_interleave(2, 1)
    cosines, sines = QwenStep(net).rotation(11, rows, columns)
    assert torch.allclose(cosines, wanted.real, atol=CLOSE)
    assert torch.allclose(sines, wanted.imag, atol=CLOSE)


@pytest.mark.parametrize(("rows", "columns"), [(4, 4), (6, 8), (10, 2), (84, 104)])
def test_places_are_those_of_qwen_image_2_1_behind_each_prompts_own_words(rows: int, columns: int) -> None:
    net = QwenImage21Transformer2DModel(**SMALL, context_in_dim=8)
    mask = torch.ones(2, 11)
    mask[1, 7:] = 0
    cosines, sines = Qwen21Step(net).rotation(mask, rows, columns)
    for own, count in enumerate((11, 7)):
        places = torch.tensor([False] * count + [True] * (rows * columns))
        wanted = net.pos_embed([(1, rows, columns)], places, torch.device("cpu")).repeat_interleave(2, 1)
        came = torch.stack((cosines, sines))[:, own, 0]
        assert torch.allclose(came[:, :count], torch.stack((wanted.real, wanted.imag))[:, :count], atol=CLOSE)
        assert torch.allclose(came[:, 11:], torch.stack((wanted.real, wanted.imag))[:, count:], atol=CLOSE)


def test_guidance_keeps_the_length_of_every_token() -> None:
    output, positive = torch.randn(2, 4, 6, 8) * 3, torch.randn(2, 4, 6, 8)
    assert torch.allclose(lengths_kept(output, positive, 2), kept_long(output, positive), atol=CLOSE)


def test_without_guidance_nothing_is_changed_to_the_bit() -> None:
    output = torch.randn(2, 4, 6, 8)
    assert torch.equal(lengths_kept(output, output.clone(), 2), output)
