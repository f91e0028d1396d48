"""Stable Diffusion XL, Playground v2.5, LCM-SDXL: UNet, two CLIP encoders, conditioning on the picture's size."""

from typing import Any

import torch
from torch import Tensor, nn

from lssgen.bundle import SizePort
from lssgen.models.nets.recipe import Blueprint, Components, Recipe, TokenRule, Wishes
from lssgen.models.nets.step import flatten_branches, step_ports
from lssgen.models.nets.unet import UnetStep, checked_unet, guidance_port
from lssgen.models.nets.vae import vae_recipes
from lssgen.ports import Port

ENCODERS = ("text_encoder", "text_encoder_2")

TIME_IDS = SizePort(
    port="time_ids",
    values=("original_height", "original_width", "crop_top", "crop_left", "target_height", "target_width"),
)
"""Original size, crop and target size. Every stage is told its own size, so that none paints a part of a picture."""


def blueprint(components: Components, wishes: Wishes) -> Blueprint:
    """The graphs of an SDXL checkpoint."""
    tokens = int(components.config("text_encoder")["max_position_embeddings"])
    zeros = components.index.get("force_zeros_for_empty_prompt", True)
    # The published SDXL VAE overflows in float16, and says so; repaired ones say that they do not.
    vae = vae_recipes(components, overflows=bool(components.config("vae").get("force_upcast", True)))
    return Blueprint(
        recipes=(text_recipe(components, tokens), step_recipe(components, wishes, tokens), *vae),
        tokens=(
            TokenRule(component="tokenizer", port="input_ids", length=tokens),
            TokenRule(component="tokenizer_2", port="input_ids_2", length=tokens),
        ),
        token_axes={},
        size_ports=(TIME_IDS,),
        empty_negative="zeros" if zeros else "encode",
    )


def text_recipe(components: Components, tokens: int) -> Recipe:
    first, second = (components.config(name) for name in ENCODERS)
    width = int(first["hidden_size"]) + int(second["hidden_size"])
    return Recipe(
        name="text",
        components=ENCODERS,
        inputs=(Port("input_ids", "int64", ("batch", tokens)), Port("input_ids_2", "int64", ("batch", tokens))),
        outputs=(
            Port("prompt_embeds", "float32", ("batch", tokens, width)),
            Port("pooled_prompt_embeds", "float32", ("batch", int(second["projection_dim"]))),
        ),
        build=lambda parts: SDXLText(*(parts.module(name) for name in ENCODERS)),
        vocabulary={"input_ids": int(first["vocab_size"]), "input_ids_2": int(second["vocab_size"])},
    )


def step_recipe(components: Components, wishes: Wishes, tokens: int) -> Recipe:
    net = checked_unet(components, "text_time")
    pooled = int(components.config("text_encoder_2")["projection_dim"])
    width = int(net["cross_attention_dim"])
    inputs, outputs = step_ports(
        channels=int(net["in_channels"]),
        history=wishes.history,
        extra=(guidance_port(net),),
        conditioning=(
            Port("prompt_embeds", "float32", ("branches", "batch", tokens, width)),
            Port("pooled_prompt_embeds", "float32", ("branches", "batch", pooled)),
            Port(TIME_IDS.port, "float32", ("branches", "batch", len(TIME_IDS.values))),
        ),
    )
    return Recipe(
        name="step",
        components=("unet",),
        inputs=inputs,
        outputs=outputs,
        build=lambda parts: SDXLStep(parts.module("unet")),
        choices={TIME_IDS.port: (0.0, 768.0, 1024.0)},
    )


class SDXLStep(UnetStep):
    """One step of an SDXL network: docs/bundle.md, with text, pooled text and sizes as conditioning."""

    def forward(
        self,
        latent: Tensor,
        history: Tensor,
        noise: Tensor,
        row: Tensor,
        guidance_weights: Tensor,
        guidance: Tensor,
        prompt_embeds: Tensor,
        pooled_prompt_embeds: Tensor,
        time_ids: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """`guidance` is the port that `guidance_port` names."""
        text, pooled, sizes = (flatten_branches(x) for x in (prompt_embeds, pooled_prompt_embeds, time_ids))
        # All float32 until it is whole: in half precision sizes above 2048 px would be rounded, and a concatenation
        # of two types is no valid ONNX.
        features = self.unet.add_time_proj(sizes.flatten()).unflatten(0, (-1, sizes.shape[1])).flatten(1)
        added = torch.cat((pooled, features), 1)
        return self.move((latent, history, noise), row, guidance_weights, guidance, text, added)


class SDXLText(nn.Module):
    """Prompt ids to SDXL conditioning: both encoders' next-to-last hidden states side by side, and CLIP's summary from
    the second.

    Source: Podell et al. 2023, arXiv:2307.01952, section 2.1; equal to diffusers' encode_prompt.
    """

    def __init__(self, text_encoder: nn.Module, text_encoder_2: nn.Module) -> None:
        super().__init__()
        self.text_encoder: Any = text_encoder
        self.text_encoder_2: Any = text_encoder_2

    def forward(self, input_ids: Tensor, input_ids_2: Tensor) -> tuple[Tensor, Tensor]:
        first = self.text_encoder(input_ids, output_hidden_states=True)
        second = self.text_encoder_2(input_ids_2, output_hidden_states=True)
        text = torch.cat((first.hidden_states[-2], second.hidden_states[-2]), -1)
        return text.float(), second.text_embeds.float()
