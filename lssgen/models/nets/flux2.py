"""FLUX.2 dev and klein: double and single stream transformer over packed latents, a language model's hidden states."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lssgen.manifest import References
from lssgen.models.nets.clip import refuse_skip
from lssgen.models.nets.flux import JointAttention, angles, rotated
from lssgen.models.nets.flux2_text import text_of
from lssgen.models.nets.packing import on_grid, pack, unpack
from lssgen.models.nets.recipe import Blueprint, Components, Recipe, Wishes
from lssgen.models.nets.step import (
    GUIDANCE,
    REFERENCES,
    Step,
    flatten_branches,
    per_picture,
    references,
    step_recipe,
    text,
)
from lssgen.models.nets.vae import vae_recipes
from lssgen.models.positions import FLUX_POSITIONS, FLUX_WORDS

PATCH = 2

REFERENCE_TIME = 10
"""Distance in time between one reference picture and the next. Source: diffusers, `_prepare_image_ids`."""


def blueprint(components: Components, wishes: Wishes) -> Blueprint:
    """The graphs of a FLUX.2 checkpoint.

    Raises:
        ModelError: Its text encoder is of another size than the transformer reads.
    """
    refuse_skip(wishes.clip_skip, "FLUX.2")
    net = components.config("transformer")
    words = text_of(components, int(net["joint_attention_dim"]), wishes.max_sequence_length)
    shown = wishes.reference_tokens
    return Blueprint(
        recipes=(words.recipe, flux2_step_recipe(net, wishes), *vae_recipes(components, wishes.channels)),
        tokens=(words.rule,),
        token_axes={"tokens": wishes.max_sequence_length, **({REFERENCES: shown} if shown else {})},
        references=References(patch=PATCH, unit_px=PATCH * wishes.cell_px) if shown else None,
    )


def flux2_step_recipe(net: Mapping[str, Any], wishes: Wishes) -> Recipe:
    return step_recipe(
        "transformer",
        _edit if wishes.reference_tokens else _paint,
        wishes=wishes,
        fed=(
            text("prompt_embeds", "tokens", int(net["joint_attention_dim"])),
            *(references(int(net["in_channels"])) if wishes.reference_tokens else ()),
            *([GUIDANCE] if net.get("guidance_embeds") else []),
        ),
    )


def _paint(parts: Components) -> nn.Module:
    return Flux2Step(parts.module("transformer"))


def _edit(parts: Components) -> nn.Module:
    return Flux2EditStep(parts.module("transformer"))


class Flux2Step(Step):
    """One step of a FLUX.2 network: docs/bundle.md, with the language model's text and, in dev, the guidance scale as
    conditioning. Text is not masked: the network was trained to read what fills prompts up."""

    words: Tensor
    picture: Tensor
    rows: Tensor
    columns: Tensor

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer: Any = transformer
        for block in self.transformer.transformer_blocks:
            block.attn.set_processor(JointAttention())
        for block in self.transformer.single_transformer_blocks:
            block.attn.set_processor(ParallelAttention())
        # A place is a time, a row, a column and a number in the text. Tables, as in FLUX.1.
        widths, theta = self.transformer.config.axes_dims_rope, self.transformer.pos_embed.theta
        times, rows, columns, words = (
            angles(width, length, theta)
            for width, length in zip(widths, (1, FLUX_POSITIONS, FLUX_POSITIONS, FLUX_WORDS), strict=True)
        )
        nowhere = torch.cat((times, rows[:, :1], columns[:, :1]), -1)
        self.register_buffer("words", before(nowhere, words), persistent=False)
        self.register_buffer("rows", before(times, rows), persistent=False)
        self.register_buffer("columns", columns, persistent=False)
        # Number 0 of a text: pictures are not part of one.
        self.register_buffer("picture", words[:, :1], persistent=False)

    def forward(
        self,
        latent: Tensor,
        history: Tensor,
        noise: Tensor,
        row: Tensor,
        guidance_weights: Tensor,
        prompt_embeds: Tensor,
        guidance: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        heard = Heeded(flatten_branches(prompt_embeds), _scale(guidance, guidance_weights))

        def velocity(x: Tensor, label: Tensor) -> Tensor:
            return self.velocity(x, label, heard)

        return self.advance(velocity, latent, history, noise, row, guidance_weights)

    def velocity(self, x: Tensor, label: Tensor, heeded: "Heeded") -> Tensor:
        """The transformer, block by block, with its angles from tables.

        Args:
            x: (n, C, height, width) float32.
            label: (n,) timestep in 0 to 1000.
            heeded: What it goes by besides.
        """
        net = self.transformer
        dtype = net.proj_out.weight.dtype
        height, width = x.shape[2:]
        # The network is told a share and multiplies it again, which moves some labels by one bit.
        conditioning = self.conditioning(label / 1000 * 1000, heeded.scale, dtype)
        cells = pack(x, PATCH)
        first, last = heeded.text.shape[1], heeded.text.shape[1] + cells.shape[1]
        image = net.x_embedder(joined(cells, heeded.tokens, 1).to(dtype))
        context = net.context_embedder(heeded.text.to(dtype))
        turns = joined(self.rotation(first, height // PATCH, width // PATCH), heeded.turns, 1)
        rotation = (turns[0], turns[1])
        for_image, for_text = (
            net.double_stream_modulation_img(conditioning),
            net.double_stream_modulation_txt(conditioning),
        )
        for block in net.transformer_blocks:
            context, image = block(
                hidden_states=image,
                encoder_hidden_states=context,
                temb_mod_img=for_image,
                temb_mod_txt=for_text,
                image_rotary_emb=rotation,
            )
        joint = torch.cat((context, image), 1)
        for_both = net.single_stream_modulation(conditioning)
        for block in net.single_transformer_blocks:
            joint = block(hidden_states=joint, encoder_hidden_states=None, temb_mod=for_both, image_rotary_emb=rotation)
        # What comes behind the picture's own tokens are those of references.
        painted = net.norm_out(joint[:, first:last], conditioning)
        return unpack(net.proj_out(painted), height, width, PATCH)

    def conditioning(self, label: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
        """(n, width) embedding of the timestep and, where it is told, the guidance scale; sines in float32."""
        embed = self.transformer.time_guidance_embed
        time = embed.timestep_embedder(embed.time_proj(label).to(dtype))
        if scale is None:
            return time
        # As diffusers: the guidance scale is embedded like a timestep.
        return time + embed.guidance_embedder(embed.time_proj(scale * 1000).to(dtype))

    def rotation(self, tokens: int, rows: int, columns: int) -> Tensor:
        """(2, tokens + rows * columns, width of a head) cosines and sines: text first."""
        grid = on_grid(self.rows[:, :rows], self.columns[:, :columns])
        grid = torch.cat((grid, self.picture.expand(-1, rows * columns, -1)), -1)
        return torch.cat((self.words[:, :tokens], grid), 1)


class Flux2EditStep(Flux2Step):
    """The same with reference pictures, whose tokens stand behind the picture's; there may be none."""

    times: Tensor

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__(transformer)
        config = self.transformer.config
        most = References(patch=1, unit_px=1).most
        # Picture number k stands at time 10 k, beside the picture that is painted at 0.
        times = angles(config.axes_dims_rope[0], REFERENCE_TIME * most + 1, self.transformer.pos_embed.theta)
        self.register_buffer("times", times[:, ::REFERENCE_TIME], persistent=False)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        latent: Tensor,
        history: Tensor,
        noise: Tensor,
        row: Tensor,
        guidance_weights: Tensor,
        prompt_embeds: Tensor,
        references: Tensor,
        reference_places: Tensor,
        guidance: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        heard = Heeded(
            flatten_branches(prompt_embeds),
            _scale(guidance, guidance_weights),
            per_picture(references, guidance_weights.shape[0]),
            self.turns(reference_places),
        )

        def velocity(x: Tensor, label: Tensor) -> Tensor:
            return self.velocity(x, label, heard)

        return self.advance(velocity, latent, history, noise, row, guidance_weights)

    def turns(self, places: Tensor) -> Tensor:
        """(n, 3) number of the picture, row and column -> (2, n, width of a head) cosines and sines."""
        number, row, column = places.unbind(1)
        # The tables of rows begin with time 0, which is another one here.
        rows = self.rows[:, :, self.times.shape[2] :].index_select(1, row)
        parts = (self.times.index_select(1, number), rows, self.columns.index_select(1, column))
        return torch.cat((*parts, self.picture.expand(-1, places.shape[0], -1)), -1)


class Heeded(NamedTuple):
    """What the network goes by, beside the latent and the time.

    Attributes:
        text: (n, tokens, width of the joint attention).
        scale: (n,) guidance scale, for networks that take it.
        tokens: (n, tokens, C * 4) reference pictures.
        turns: (2, tokens, width of a head) cosines and sines of their places.
    """

    text: Tensor
    scale: Tensor | None = None
    tokens: Tensor | None = None
    turns: Tensor | None = None


def _scale(guidance: Tensor | None, weights: Tensor) -> Tensor | None:
    return None if guidance is None else per_picture(guidance, weights.shape[0])


def joined(one: Tensor, other: Tensor | None, axis: int) -> Tensor:
    """Both, one after the other, where there is another."""
    return one if other is None else torch.cat((one, other), axis)


def before(still: Tensor, moving: Tensor) -> Tensor:
    """(2, 1, a) and (2, n, b) -> (2, n, a + b)."""
    return torch.cat((still.expand(-1, moving.shape[1], -1), moving), -1)


class ParallelAttention:
    """Attention of the single blocks, whose feed-forward goes in and out by the same layers."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        attention_mask: None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Names and result as diffusers calls a processor."""
        del attention_mask
        assert image_rotary_emb is not None
        joint = attn.to_qkv_mlp_proj(hidden_states)
        # Sliced: a split would make an ONNX sequence.
        width = attn.inner_dim
        query, key, value = (
            joint[..., at * width : (at + 1) * width].unflatten(2, (-1, attn.head_dim)).transpose(1, 2)
            for at in range(3)
        )
        query = rotated(attn.norm_q(query), image_rotary_emb)
        key = rotated(attn.norm_k(key), image_rotary_emb)
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2, 3)
        return attn.to_out(torch.cat((mixed, attn.mlp_act_fn(joint[..., 3 * width :])), -1))
