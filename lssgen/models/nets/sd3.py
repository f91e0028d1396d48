"""Stable Diffusion 3 and 3.5: MMDiT, two CLIP encoders, optional T5."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lssgen.manifest import Heard
from lssgen.models.controlnets import PART
from lssgen.models.nets.clip import heard_side_by_side, refuse_skip
from lssgen.models.nets.control import beside, control_of, split_row
from lssgen.models.nets.recipe import Blueprint, Components, Recipe, TokenRule, Wishes
from lssgen.models.nets.step import Step, flatten_branches, per_picture, step_recipe, text
from lssgen.models.nets.vae import vae_recipes
from lssgen.ports import Port

ENCODERS = ("text_encoder", "text_encoder_2")
T5 = "text_encoder_3"


def blueprint(components: Components, wishes: Wishes) -> Blueprint:
    """The graphs of a Stable Diffusion 3 checkpoint."""
    net = components.config("transformer")
    t5 = wishes.t5 and components.has(T5)
    clip_tokens = int(components.config("text_encoder")["max_position_embeddings"])
    t5_tokens = wishes.max_sequence_length
    tokens = clip_tokens + t5_tokens
    refuse_skip(wishes.clip_skip, "Stable Diffusion 3")
    first, second = heard_side_by_side(components, ENCODERS)
    third = Heard(output="prompt_embeds", row=clip_tokens)
    blank = 0 if t5 else wishes.max_sequence_length
    return Blueprint(
        recipes=(
            text_recipe(components, wishes, t5=t5, clip_tokens=clip_tokens),
            sd3_step_recipe(components, net, wishes),
            *vae_recipes(components, wishes.channels),
        ),
        tokens=(
            TokenRule(component="tokenizer", port="input_ids", length=clip_tokens, heard=first),
            TokenRule(component="tokenizer_2", port="input_ids_2", length=clip_tokens, heard=second),
            *([TokenRule(component="tokenizer_3", port="input_ids_3", length=t5_tokens, heard=third)] if t5 else []),
        ),
        token_axes={"tokens": tokens, **({"t5_tokens": wishes.max_sequence_length} if t5 else {})},
        layers=int(net["num_layers"]) if wishes.skip_layers else 0,
        notes=(f"Without T5, {blank} rows of zeros stand for its tokens, as in diffusers.",) if blank else (),
    )


def text_recipe(components: Components, wishes: Wishes, *, t5: bool, clip_tokens: int) -> Recipe:
    net = components.config("transformer")
    width, pooled = int(net["joint_attention_dim"]), int(net["pooled_projection_dim"])
    encoders = (*ENCODERS, T5) if t5 else ENCODERS
    tokens = "tokens" if t5 else clip_tokens + wishes.max_sequence_length
    ids = [Port("input_ids", "int64", ("batch", clip_tokens)), Port("input_ids_2", "int64", ("batch", clip_tokens))]
    if t5:
        ids.append(Port("input_ids_3", "int64", ("batch", "t5_tokens")))

    def build(parts: Components) -> nn.Module:
        third = parts.module(T5) if t5 else None
        first, second = (parts.module(name) for name in ENCODERS)
        return SD3Text(first, second, third, width, 0 if t5 else wishes.max_sequence_length)

    return Recipe(
        name="text",
        components=encoders,
        inputs=tuple(ids),
        outputs=(
            Port("prompt_embeds", "float32", ("batch", tokens, width)),
            Port("pooled_prompt_embeds", "float32", ("batch", pooled)),
        ),
        build=build,
        runs="prompt",
        vocabulary={
            port.name: int(components.config(name)["vocab_size"]) for port, name in zip(ids, encoders, strict=True)
        },
        settings={"width": width, "blank_tokens": 0 if t5 else wishes.max_sequence_length},
    )


def sd3_step_recipe(components: Components, net: Mapping[str, Any], wishes: Wishes) -> Recipe:
    more = beside(components, (), "latent", wishes.channels)
    # Some ControlNets were trained on latents that keep their mean.
    unshifted = more.columns > 0 and bool(components.config(PART).get("force_zeros_for_pooled_projection"))
    vae = components.config("vae")
    mean = float(vae.get("shift_factor") or 0.0) * float(vae.get("scaling_factor") or 1.0)
    # In the graph's key too, since the VAE's configuration is not.
    settings = {"mean": mean} if unshifted else {}
    recipe = step_recipe(
        "transformer",
        lambda parts: SD3Step(parts.module("transformer"), control_of(parts), more.columns, **settings),
        wishes=wishes,
        fed=(
            text("prompt_embeds", "tokens", int(net["joint_attention_dim"])),
            text("pooled_prompt_embeds", int(net["pooled_projection_dim"])),
        ),
        layers=int(net["num_layers"]),
        beside=more,
    )
    return replace(recipe, settings=settings)


class SD3Step(Step):
    """One step of an SD3 network: docs/bundle.md, with `prompt_embeds` and `pooled_prompt_embeds` as conditioning."""

    def __init__(
        self, transformer: nn.Module, controlnet: nn.Module | None = None, columns: int = 0, mean: float = 0.0
    ) -> None:
        """`columns` of the row are the ControlNet's, and `mean` is added to the latent of its picture."""
        super().__init__()
        self.transformer: Any = transformer
        self.controlnet: Any = controlnet
        self.told_columns = columns
        self.mean = mean

    def forward(
        self,
        latent: Tensor,
        history: Tensor,
        noise: Tensor,
        row: Tensor,
        guidance_weights: Tensor,
        prompt_embeds: Tensor,
        pooled_prompt_embeds: Tensor,
        first: Tensor | None = None,
        second: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """After the text come the control picture's latent and the gates of the layers, each where there is one."""
        row, told = split_row(row, self.told_columns)
        picture, layer_gates = (None, first) if told is None else (first, second)
        branches = guidance_weights.shape[0]
        words, pooled = flatten_branches(prompt_embeds), flatten_branches(pooled_prompt_embeds)
        gates = None
        if layer_gates is not None:
            gates = layer_gates.unsqueeze(1).expand(-1, latent.shape[0], -1).flatten(0, 1)

        def velocity(x: Tensor, label: Tensor) -> Tensor:
            residuals: list[Tensor] = []
            if told is not None and picture is not None:
                share = per_picture(told.scale, branches).flatten(1)[:, :, None]
                hint = per_picture(picture, branches) + self.mean
                made = sd3_residuals(self.controlnet, self.transformer.pos_embed, x, label, words, pooled, hint)
                residuals = [one * share.to(one.dtype) for one in made]
            return self.velocity(x, label, words, pooled, gates, residuals)

        return self.advance(velocity, latent, history, noise, row, guidance_weights)

    def velocity(
        self,
        x: Tensor,
        label: Tensor,
        text: Tensor,
        pooled: Tensor,
        gates: Tensor | None,
        residuals: Sequence[Tensor] = (),
    ) -> Tensor:
        """The transformer, block by block, so that each picture of the batch can leave blocks out.

        Args:
            x: (n, C, height, width) float32.
            label: (n,) timestep in 0 to 1000.
            text: (n, tokens, width of the joint attention).
            pooled: (n, width of the pooled embedding).
            gates: (n, layers), 1 where a block runs. None: all run.
            residuals: (n, places, width) that a ControlNet adds after the blocks; neighbours share, where there are
                fewer than blocks.
        """
        net = self.transformer
        dtype = net.proj_out.weight.dtype
        # Sines and cosines of the timestep are float32 inside, whatever dtype comes out.
        conditioning = net.time_text_embed(label, pooled.to(dtype))
        image = net.pos_embed(x.to(dtype)).contiguous()
        context = net.context_embedder(text.to(dtype))
        for index, block in enumerate(net.transformer_blocks):
            next_context, next_image = block(hidden_states=image, encoder_hidden_states=context, temb=conditioning)
            if gates is not None:
                # A choice, not a blend: the layers that run compute what they compute without gates, to the bit.
                runs = gates[:, index].reshape(-1, 1, 1) > 0.5
                next_image = torch.where(runs, next_image, image)
                if not block.context_pre_only:  # the last block drops the text
                    next_context = torch.where(runs, next_context, context)
            image, context = next_image, next_context
            if residuals and not block.context_pre_only:
                # As diffusers: the share is not rounded, so that the first ones may serve more blocks than the last.
                image = image + residuals[int(index / (len(net.transformer_blocks) / len(residuals)))]
        patches = net.proj_out(net.norm_out(image, conditioning))
        return unpatch(patches, x.shape[2], x.shape[3], net.config.patch_size)


def sd3_residuals(
    net: Any, positions: nn.Module, x: Tensor, label: Tensor, text: Tensor, pooled: Tensor, hint: Tensor
) -> list[Tensor]:
    """An SD3ControlNetModel: (n, places, width) for each of its blocks.

    Args:
        net: The module of diffusers.
        positions: The network's own way from a latent to tokens, for ControlNets that have none.
        x: (n, C, height, width) float32.
        label: (n,) timestep in 0 to 1000.
        text: (n, tokens, width of the joint attention); not read by ControlNets of single blocks.
        pooled: (n, width of the pooled embedding).
        hint: (n, C, height, width) latent of the control picture.

    Source: diffusers' StableDiffusion3ControlNetPipeline.
    """
    dtype = net.controlnet_blocks[0].weight.dtype
    if net.config.force_zeros_for_pooled_projection:
        pooled = torch.zeros_like(pooled)
    conditioning = net.time_text_embed(label, pooled.to(dtype))
    embed = positions if net.pos_embed is None else net.pos_embed
    image = embed(x.to(dtype)).contiguous() + net.pos_embed_input(hint.to(dtype))
    context = None if net.context_embedder is None else net.context_embedder(text.to(dtype))
    found: list[Tensor] = []
    for block in net.transformer_blocks:
        if context is None:
            image = block(image, conditioning)
        else:
            context, image = block(hidden_states=image, encoder_hidden_states=context, temb=conditioning)
        found.append(image)
    return [out(one) for out, one in zip(net.controlnet_blocks, found, strict=True)]


def unpatch(patches: Tensor, height: int, width: int, patch: int) -> Tensor:
    """(n, height / patch * width / patch, patch * patch * C) -> (n, C, height, width); channels vary fastest."""
    rows, columns = height // patch, width // patch
    grid = patches.unflatten(2, (patch, patch, -1)).unflatten(1, (rows, columns))
    return grid.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


class SD3Text(nn.Module):
    """Prompt ids to SD3 conditioning.

    The CLIP encoders' next-to-last hidden states stand side by side, filled with zeros up to the width of the joint
    attention, in front of T5's last ones. Without T5 there are `blank_tokens` rows of zeros in its place.

    Source: Esser et al. 2024, arXiv:2403.03206, appendix; equal to diffusers' encode_prompt.
    """

    def __init__(
        self,
        text_encoder: nn.Module,
        text_encoder_2: nn.Module,
        text_encoder_3: nn.Module | None,
        width: int,
        blank_tokens: int,
    ) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.text_encoder_2 = text_encoder_2
        self.text_encoder_3 = text_encoder_3
        self.width = width
        self.blank_tokens = blank_tokens

    def forward(
        self, input_ids: Tensor, input_ids_2: Tensor, input_ids_3: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        first = self.text_encoder(input_ids, output_hidden_states=True)
        second = self.text_encoder_2(input_ids_2, output_hidden_states=True)
        clip = torch.cat((first.hidden_states[-2], second.hidden_states[-2]), -1).float()
        clip = nn.functional.pad(clip, (0, self.width - clip.shape[-1]))
        if self.text_encoder_3 is not None:
            t5 = self.text_encoder_3(input_ids_3)[0].float()
        else:
            t5 = clip.new_zeros((clip.shape[0], self.blank_tokens, self.width))
        pooled = torch.cat((first.text_embeds, second.text_embeds), -1).float()
        return torch.cat((clip, t5), 1), pooled
