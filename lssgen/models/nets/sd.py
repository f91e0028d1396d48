"""Stable Diffusion 1.x and 2.x: UNet, one CLIP encoder."""

from typing import Any

from torch import Tensor, nn

from lssgen.manifest import Heard
from lssgen.models.families import inpaints
from lssgen.models.nets.clip import checked_skip, final_norm, refuse_masked
from lssgen.models.nets.control import beside_unet, control_of
from lssgen.models.nets.recipe import Blueprint, Components, Recipe, TokenRule, Wishes
from lssgen.models.nets.step import flatten_branches, step_recipe, text
from lssgen.models.nets.unet import UnetStep, checked_unet, guidance_fed, text_width
from lssgen.models.nets.vae import vae_recipes
from lssgen.ports import Port


def blueprint(components: Components, wishes: Wishes) -> Blueprint:
    """The graphs of a Stable Diffusion 1.x or 2.x checkpoint."""
    tokens = int(components.config("text_encoder")["max_position_embeddings"])
    return Blueprint(
        recipes=(
            text_recipe(components, wishes, tokens),
            sd_step_recipe(components, wishes, tokens),
            *vae_recipes(components, wishes.channels, inpaints=inpaints(components.config("unet"))),
        ),
        tokens=(
            TokenRule(component="tokenizer", port="input_ids", length=tokens, heard=Heard(output="prompt_embeds")),
        ),
        token_axes={},
    )


def text_recipe(components: Components, wishes: Wishes, tokens: int) -> Recipe:
    clip = components.config("text_encoder")
    refuse_masked(clip)
    skip = checked_skip(wishes.clip_skip, clip, kept=1)
    return Recipe(
        name="text",
        components=("text_encoder",),
        inputs=(Port("input_ids", "int64", ("batch", tokens)),),
        outputs=(Port("prompt_embeds", "float32", ("batch", tokens, int(clip["hidden_size"]))),),
        build=lambda parts: SDText(parts.module("text_encoder"), skip),
        runs="prompt",
        vocabulary={"input_ids": int(clip["vocab_size"])},
        settings={"clip_skip": skip},
    )


def sd_step_recipe(components: Components, wishes: Wishes, tokens: int) -> Recipe:
    net = checked_unet(components, None)
    more = beside_unet(components, net, wishes.channels)
    return step_recipe(
        "unet",
        lambda parts: SDStep(parts.module("unet"), control_of(parts), more),
        wishes=wishes,
        fed=(guidance_fed(net), text("prompt_embeds", tokens, text_width(net))),
        beside=more,
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
        first: Tensor | None = None,
        second: Tensor | None = None,
        third: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """`guidance` is the port of `guidance_fed`; after the text come the pictures of `beside_unet`, if any."""
        words, pictures = flatten_branches(prompt_embeds), (first, second, third)
        return self.move((latent, history, noise), row, guidance_weights, guidance, words, pictures=pictures)


class SDText(nn.Module):
    """Prompt ids to CLIP's last hidden states, or those some layers before, after its final norm; equal to diffusers'
    encode_prompt.
    """

    def __init__(self, text_encoder: nn.Module, skip: int = 0) -> None:
        super().__init__()
        self.text_encoder: Any = text_encoder
        self.skip = skip

    def forward(self, input_ids: Tensor) -> Tensor:
        if not self.skip:
            # The library has normed these already.
            return self.text_encoder(input_ids).last_hidden_state.float()
        states = self.text_encoder(input_ids, output_hidden_states=True).hidden_states[-(self.skip + 1)]
        return final_norm(self.text_encoder)(states).float()
