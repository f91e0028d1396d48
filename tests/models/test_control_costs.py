"""FLOPs of ControlNets from a config.json, and which fit which network, against diffusers' classes."""

from typing import Any

import pytest
import torch
from diffusers import ControlNetModel, ControlNetUnionModel, FluxControlNetModel, SD3ControlNetModel
from test_costs import FLUX, SD, SD3, SDXL, TEXT, _
from torch.utils.flop_counter import FlopCounterMode

from lssgen.errors import ModelError
from lssgen.models.controlnets import KINDS, see_fit

HINT = {"conditioning_embedding_out_channels": (8, 12, 16)}
"""Cells of 4 x 4 px."""


def down(settings: dict[str, Any]) -> dict[str, Any]:
    """Fields of a ControlNet, among those of a UNet."""
    kept = {name: value for name, value in settings.items() if name not in ("sample_size", "out_channels")}
    return {name: value for name, value in kept.items() if name not in ("up_block_types", "time_cond_proj_dim")} | HINT


UNION = {
    "num_control_type": 6, "num_trans_channel": 32, "num_trans_head": 4, "num_proj_channel": 32, "num_trans_layer": 1,
}  # fmt: skip


def unet_inputs(height: int, width: int) -> dict[str, Any]:
    return {"sample": _(4, height, width), "encoder_hidden_states": _(TEXT, 24)}


def sd_inputs(height: int, width: int) -> dict[str, Any]:
    return {**unet_inputs(height, width), "controlnet_cond": _(3, 4 * height, 4 * width)}


def sdxl_inputs(height: int, width: int) -> dict[str, Any]:
    return {**sd_inputs(height, width), "added_cond_kwargs": {"text_embeds": _(20), "time_ids": _(6)}}


def union_inputs(height: int, width: int) -> dict[str, Any]:
    given = sdxl_inputs(height, width)
    picture = given.pop("controlnet_cond")
    return {**given, "controlnet_cond": [picture], "control_type": _(6), "control_type_idx": [2]}


def sd3_inputs(height: int, width: int) -> dict[str, Any]:
    text = {"encoder_hidden_states": _(TEXT, 24), "pooled_projections": _(20)}
    return {"hidden_states": _(4, height, width), "controlnet_cond": _(4, height, width), **text}


def alone_inputs(height: int, width: int) -> dict[str, Any]:
    return {**sd3_inputs(height, width), "encoder_hidden_states": None}


def flux_inputs(height: int, width: int) -> dict[str, Any]:
    tokens = height * width // 4
    text = {"encoder_hidden_states": _(TEXT, 24), "pooled_projections": _(20), "txt_ids": torch.empty(TEXT, 3)}
    picture = {"hidden_states": _(tokens, 16), "controlnet_cond": _(tokens, 16), "img_ids": torch.empty(tokens, 3)}
    return {**picture, **text}


def flux_union_inputs(height: int, width: int) -> dict[str, Any]:
    mode = torch.empty(1, 1, dtype=torch.long)
    return {**flux_inputs(height, width), "guidance": _(), "controlnet_mode": mode}


CASES: list[tuple[str, Any, dict[str, Any], Any]] = [
    ("sd", ControlNetModel, down(SD), sd_inputs),
    ("sdxl", ControlNetModel, down(SDXL), sdxl_inputs),
    ("sdxl union", ControlNetUnionModel, down(SDXL) | UNION, union_inputs),
    ("sd3", SD3ControlNetModel, SD3, sd3_inputs),
    ("sd3.5", SD3ControlNetModel, SD3 | {"dual_attention_layers": (0, 1)}, sd3_inputs),
    ("sd3, picture alone", SD3ControlNetModel, SD3 | {"joint_attention_dim": None}, alone_inputs),
    ("flux", FluxControlNetModel, FLUX, flux_inputs),
    ("flux union", FluxControlNetModel, FLUX | {"guidance_embeds": True, "num_mode": 5}, flux_union_inputs),
]


@pytest.mark.parametrize(("make", "config", "inputs"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_cost_is_what_torch_counts(make: Any, config: dict[str, Any], inputs: Any) -> None:
    with torch.device("meta"):
        network = make(**config)
        for height, width in ((8, 12), (16, 16)):
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                network(timestep=_(), **inputs(height, width))
            cost = KINDS[make.__name__].cost(config, TEXT)
            # Every product is counted on both sides: these are whole numbers, and equal.
            assert cost.flops(height * width) == counter.get_total_flops()


FITS: dict[str, Any] = {"family": "sd", "channels": 4, "cell_px": 4, "said": "the ControlNet x"}
NETWORK = {**SD, "addition_embed_type": None, "norm_num_groups": 32}
OWN = {**down(SD), "_class_name": "ControlNetModel", "addition_embed_type": None, "norm_num_groups": 32}


def test_a_controlnet_of_the_network_fits() -> None:
    see_fit(OWN, NETWORK, **FITS)


@pytest.mark.parametrize(
    ("control", "where", "words"),
    [
        ({"_class_name": "FluxControlNetModel"}, {}, "is a FluxControlNetModel; a sd checkpoint takes a ControlNetMod"),
        ({"_class_name": "AutoencoderKL"}, {}, "is a AutoencoderKL"),
        ({}, {"family": "cogview4"}, "a cogview4 checkpoint has no ControlNets here"),
        ({"block_out_channels": [32, 128]}, {}, r"block_out_channels .* made for another model"),
        ({"cross_attention_dim": 48}, {}, r"cross_attention_dim of the ControlNet x is 48, of the network 24"),
        ({"in_channels": 9}, {}, r"in_channels .* is 9, of the network 4"),
        ({"conditioning_channels": 4}, {}, r"conditioning_channels .* is 4; export knows 3"),
        ({"global_pool_conditions": True}, {}, r"global_pool_conditions .* is True; export knows False"),
        ({}, {"cell_px": 8}, r"one cell of 4 x 4 px, the VAE of the checkpoint of 8 px"),
    ],
)
def test_one_of_another_family_or_width_is_refused(control: dict[str, Any], where: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        see_fit({**OWN, **control}, NETWORK, **{**FITS, **where})
