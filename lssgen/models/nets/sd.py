"""Stable Diffusion 1.x and 2.x: UNet, one CLIP encoder."""

from typing import Any

from torch import Tensor, nn

from lssgen.models.nets.recipe import Blueprint, Components, Recipe, TokenRule, Wishes
from lssgen.models.nets.step import flatten_branches, step_ports
from lssgen.models.nets.unet import UnetStep, checked_unet, guidance_port
from lssgen.models.nets.vae import vae_recipes
from lssgen.ports import Port


def blueprint(components: Components, wishes: Wishes) -> Blueprint:
    """The graphs of a Stable Diffusion 1.x or 2.x checkpoint."""
    tokens = int(components.config("text_encoder")["max_position_embeddings"])
    return Blueprint(
        recipes=(text_recipe(components, tokens), step_recipe(components, wishes, tokens), *vae_recipes(components)),
        tokens=(TokenRule(component="tokenizer", port="input_ids", length=tokens),),
        token_axes={},
    )


def text_recipe(components: Components, tokens: int) -> Recipe:
    clip = components.config("text_encoder")
    return Recipe(
        name="text",
        components=("text_encoder",),
        inputs=(Port("input_ids", "int64", ("batch", tokens)),),
        outputs=(Port("prompt_embeds", "float32", ("batch", tokens, int(clip["hidden_size"]))),),
        build=lambda parts: SDText(parts.module("text_encoder")),
        vocabulary={"input_ids": int(clip["vocab_size"])},
    )


def step_recipe(components: Components, wishes: Wishes, tokens: int) -> Recipe:
    net = checked_unet(components, None)
    width = int(net["cross_attention_dim"])
    inputs, outputs = step_ports(
        channels=int(net["in_channels"]),
        history=wishes.history,
        extra=(guidance_port(net),),
        conditioning=(Port("prompt_embeds", "float32", ("branches", "batch", tokens, width)),),
    )
    return Recipe(
        name="step",
        components=("unet",),
        inputs=inputs,
        outputs=outputs,
        build=lambda parts: SDStep(parts.module("unet")),
    )


class SDStep(UnetStep):
    """One step of an SD network: docs/bundle.md, with `prompt_embeds` as conditioning."""

    def forward(
        self,
        latent: Tensor,
        history: Tensor,
        noise: Tensor,
        row: Tensor,
        guidance_weights: Tensor,
        guidance: Tensor,
        prompt_embeds: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """`guidance` is the port that `guidance_port` names."""
        return self.move((latent, history, noise), row, guidance_weights, guidance, flatten_branches(prompt_embeds))


class SDText(nn.Module):
    """Prompt ids to CLIP's last hidden states, after its final norm; equal to diffusers' encode_prompt."""

    def __init__(self, text_encoder: nn.Module) -> None:
        super().__init__()
        self.text_encoder: Any = text_encoder

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.text_encoder(input_ids).last_hidden_state.float()
