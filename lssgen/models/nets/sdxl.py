"""Stable Diffusion XL, Playground v2.5, LCM-SDXL: UNet, two CLIP encoders, conditioning on the picture's size."""

from typing import Any

import torch
from torch import Tensor, nn

from lssgen.models.families import inpaints
from lssgen.models.nets.clip import checked_skip, heard_side_by_side
from lssgen.models.nets.control import beside_unet, control_of
from lssgen.models.nets.recipe import Blueprint, Components, Recipe, TokenRule, Wishes
from lssgen.models.nets.step import flatten_branches, sizes, step_recipe, text
from lssgen.models.nets.unet import UnetStep, checked_unet, guidance_fed, text_width
from lssgen.models.nets.vae import vae_recipes
from lssgen.ports import Port

ENCODERS = ("text_encoder", "text_encoder_2")

TIME_IDS = sizes(
    "time_ids", "original_height", "original_width", "crop_top", "crop_left", "target_height", "target_width"
)
"""Original size, crop and target size. Every stage is told its own size, so that none paints a part of a picture."""


def blueprint(components: Components, wishes: Wishes) -> Blueprint:
    """The graphs of an SDXL checkpoint."""
    tokens = int(components.config("text_encoder")["max_position_embeddings"])
    first, second = heard_side_by_side(components, ENCODERS)
    zeros = components.index.get("force_zeros_for_empty_prompt", True)
    # The published SDXL VAE overflows in float16, and says so; repaired ones say that they do not.
    vae = vae_recipes(
        components,
        wishes.channels,
        overflows=bool(components.config("vae").get("force_upcast", True)),
        inpaints=inpaints(components.config("unet")),
    )
    return Blueprint(
        recipes=(text_recipe(components, wishes, tokens), sdxl_step_recipe(components, wishes, tokens), *vae),
        tokens=(
            TokenRule(component="tokenizer", port="input_ids", length=tokens, heard=first),
            TokenRule(component="tokenizer_2", port="input_ids_2", length=tokens, heard=second),
        ),
        token_axes={},
        empty_negative="zeros" if zeros else "encode",
    )


def text_recipe(components: Components, wishes: Wishes, tokens: int) -> Recipe:
    first, second = (components.config(name) for name in ENCODERS)
    skip = max(checked_skip(wishes.clip_skip, clip, kept=2) for clip in (first, second))
    width = int(first["hidden_size"]) + int(second["hidden_size"])
    return Recipe(
        name="text",
        components=ENCODERS,
        inputs=(Port("input_ids", "int64", ("batch", tokens)), Port("input_ids_2", "int64", ("batch", tokens))),
        outputs=(
            Port("prompt_embeds", "float32", ("batch", tokens, width)),
            Port("pooled_prompt_embeds", "float32", ("batch", int(second["projection_dim"]))),
        ),
        build=lambda parts: SDXLText(*(parts.module(name) for name in ENCODERS), skip=skip),
        runs="prompt",
        vocabulary={"input_ids": int(first["vocab_size"]), "input_ids_2": int(second["vocab_size"])},
        settings={"clip_skip": skip},
    )


def sdxl_step_recipe(components: Components, wishes: Wishes, tokens: int) -> Recipe:
    net = checked_unet(components, "text_time")
    pooled = int(components.config("text_encoder_2")["projection_dim"])
    more = beside_unet(components, net, wishes.channels)
    return step_recipe(
        "unet",
        lambda parts: SDXLStep(parts.module("unet"), control_of(parts), more),
        wishes=wishes,
        fed=(
            guidance_fed(net),
            text("prompt_embeds", tokens, text_width(net)),
            text("pooled_prompt_embeds", pooled),
            TIME_IDS,
        ),
        choices={TIME_IDS[0].name: (0.0, 768.0, 1024.0)},
        beside=more,
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
        first: Tensor | None = None,
        second: Tensor | None = None,
        third: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """`guidance` is the port of `guidance_fed`; after the sizes come the pictures of `beside_unet`, if any."""
        words, pooled, told = (flatten_branches(x) for x in (prompt_embeds, pooled_prompt_embeds, time_ids))
        # All float32 until it is whole: in half precision sizes above 2048 px would be rounded, and a concatenation
        # of two types is not valid ONNX.
        features = self.unet.add_time_proj(told.flatten()).unflatten(0, (-1, told.shape[1])).flatten(1)
        added = torch.cat((pooled, features), 1)
        state, pictures = (latent, history, noise), (first, second, third)
        return self.move(state, row, guidance_weights, guidance, words, added, pictures)


class SDXLText(nn.Module):
    """Prompt ids to SDXL conditioning: both encoders' next-to-last hidden states side by side, or those some layers
    before, and CLIP's summary from the second.

    Source: Podell et al. 2023, arXiv:2307.01952, section 2.1; equal to diffusers' encode_prompt.
    """

    def __init__(self, text_encoder: nn.Module, text_encoder_2: nn.Module, skip: int = 0) -> None:
        super().__init__()
        self.text_encoder: Any = text_encoder
        self.text_encoder_2: Any = text_encoder_2
        self.skip = skip

    def forward(self, input_ids: Tensor, input_ids_2: Tensor) -> tuple[Tensor, Tensor]:
        first = self.text_encoder(input_ids, output_hidden_states=True)
        second = self.text_encoder_2(input_ids_2, output_hidden_states=True)
        layer = -(self.skip + 2)
        words = torch.cat((first.hidden_states[layer], second.hidden_states[layer]), -1)
        return words.float(), second.text_embeds.float()
