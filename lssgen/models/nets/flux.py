"""FLUX.1 dev, schnell and Krea: double and single stream transformer over packed latents, CLIP's summary, T5."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lssgen.errors import ExportError, ModelError
from lssgen.manifest import Heard
from lssgen.models.controlnets import PART
from lssgen.models.families import inpaints
from lssgen.models.nets.clip import refuse_skip
from lssgen.models.nets.control import (
    CONTROL,
    KEPT,
    MASK,
    Seen,
    Told,
    beside,
    cell_px,
    control_of,
    picture_fed,
    pictures_by_name,
    split_row,
)
from lssgen.models.nets.flux_control import FluxControl, Residuals, spread
from lssgen.models.nets.packing import on_grid, pack, unpack
from lssgen.models.nets.recipe import Blueprint, Components, Recipe, TokenRule, Wishes
from lssgen.models.nets.step import (
    GUIDANCE,
    NOTHING,
    Beside,
    Fed,
    Step,
    flatten_branches,
    per_picture,
    step_recipe,
    text,
)
from lssgen.models.nets.vae import vae_recipes
from lssgen.models.positions import FLUX_POSITIONS
from lssgen.ports import Port

ENCODERS = ("text_encoder", "text_encoder_2")
PATCH = 2


def blueprint(components: Components, wishes: Wishes) -> Blueprint:
    """The graphs of a FLUX.1 checkpoint.

    Raises:
        ExportError: T5 is not wanted.
    """
    if not wishes.t5:
        raise ExportError("FLUX.1 reads its prompt through T5 and cannot do without; export it with T5")
    refuse_skip(wishes.clip_skip, "FLUX.1")
    net = components.config("transformer")
    clip_tokens = int(components.config("text_encoder")["max_position_embeddings"])
    return Blueprint(
        recipes=(
            text_recipe(components, net, clip_tokens),
            flux_step_recipe(components, net, wishes),
            *vae_recipes(components, wishes.channels, inpaints=inpaints(net)),
        ),
        tokens=(
            TokenRule(component="tokenizer", port="input_ids", length=clip_tokens),
            TokenRule(
                component="tokenizer_2",
                port="input_ids_2",
                length=wishes.max_sequence_length,
                heard=Heard(output="prompt_embeds"),
            ),
        ),
        token_axes={"tokens": wishes.max_sequence_length},
    )


def text_recipe(components: Components, net: Mapping[str, Any], clip_tokens: int) -> Recipe:
    clip, t5 = (components.config(name) for name in ENCODERS)
    return Recipe(
        name="text",
        components=ENCODERS,
        inputs=(Port("input_ids", "int64", ("batch", clip_tokens)), Port("input_ids_2", "int64", ("batch", "tokens"))),
        outputs=(
            Port("prompt_embeds", "float32", ("batch", "tokens", int(net["joint_attention_dim"]))),
            Port("pooled_prompt_embeds", "float32", ("batch", int(net["pooled_projection_dim"]))),
        ),
        build=lambda parts: FluxText(*(parts.module(name) for name in ENCODERS)),
        runs="prompt",
        vocabulary={"input_ids": int(clip["vocab_size"]), "input_ids_2": int(t5["vocab_size"])},
    )


def flux_step_recipe(components: Components, net: Mapping[str, Any], wishes: Wishes) -> Recipe:
    more = beside(components, seen_pictures(components, net, wishes.channels), "latent", wishes.channels)
    return step_recipe(
        "transformer",
        lambda parts: FluxStep(parts.module("transformer"), control_of(parts), more),
        wishes=wishes,
        fed=(
            text("prompt_embeds", "tokens", int(net["joint_attention_dim"])),
            text("pooled_prompt_embeds", int(net["pooled_projection_dim"])),
            # Always there where the ControlNet takes it, or pictures of a network without would not follow it.
            *([GUIDANCE] if takes_guidance(components, net) else []),
        ),
        beside=more,
    )


def seen_pictures(components: Components, net: Mapping[str, Any], channels: int) -> Sequence[Fed]:
    """Pictures whose channels stand beside the latent's, in their order: FLUX Fill's two, the one of Canny and Depth.

    Raises:
        ModelError: The transformer takes other channels, or a control picture of its own and a ControlNet's.
    """
    cell = cell_px(components)
    masked = (picture_fed(KEPT, channels, "kept"), picture_fed(MASK, cell * cell, "cell_mask"))
    depths: Mapping[int, Sequence[Fed]] = {
        channels: (),
        2 * channels: (picture_fed(CONTROL, channels, "latent"),),
        2 * channels + cell * cell: masked,
    }
    taken = int(net["in_channels"]) // PATCH**2
    if taken not in depths or int(net["in_channels"]) % PATCH**2:
        raise ModelError(
            f"the transformer takes {net['in_channels']} channels; export knows "
            f"{', '.join(str(PATCH**2 * depth) for depth in depths)} (FLUX.1; Canny and Depth; Fill): choose such a "
            "checkpoint"
        )
    if taken == 2 * channels and components.has(PART):
        raise ModelError("the transformer takes a control picture itself; export it without --controlnet")
    return depths[taken]


def takes_guidance(components: Components, net: Mapping[str, Any]) -> bool:
    """Whether the network or its ControlNet takes the guidance scale."""
    own = components.config(PART) if components.has(PART) else {}
    return bool(net.get("guidance_embeds") or own.get("guidance_embeds"))


class PackedStep(Step):
    """What FLUX and its kin share: the angles of text and picture, from tables, and attention turned by them."""

    rows: Tensor
    columns: Tensor
    still: Tensor
    origin: Tensor

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer: Any = transformer
        turn(self.transformer)
        still, rows, columns = (
            angles(width, FLUX_POSITIONS, self.transformer.pos_embed.theta)
            for width in self.transformer.config.axes_dims_rope
        )
        # Tables, not arithmetic: every size takes its part of them, which is a constant to engines built for the size.
        # Not persistent: no checkpoint has them.
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("columns", columns, persistent=False)
        # Position 0 of the axis that pictures do not use, and of all three for text.
        self.register_buffer("still", still[:, :1], persistent=False)
        self.register_buffer("origin", torch.cat((still, rows, columns), -1)[:, :1], persistent=False)

    def rotation(self, tokens: int, rows: int, columns: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines, (tokens + rows * columns, width of a head) each: text first, all of it at the origin."""
        grid = on_grid(self.rows[:, :rows], self.columns[:, :columns])
        still = self.still.expand(-1, rows * columns, -1)
        joint = torch.cat((self.origin.expand(-1, tokens, -1), torch.cat((still, grid), -1)), 1)
        return joint[0], joint[1]


class FluxStep(PackedStep):
    """One step of a FLUX network: docs/bundle.md, with T5's text, CLIP's summary and, in dev and Krea, the guidance
    scale as conditioning."""

    def __init__(self, transformer: nn.Module, controlnet: nn.Module | None = None, beside: Beside = NOTHING) -> None:
        super().__init__(transformer)
        self.controlnet: Any = controlnet
        if controlnet is not None:
            turn(controlnet)
        self.told_columns = beside.columns
        self.pictures = tuple(port.name for port, _ in beside.fed)

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
        third: Tensor | None = None,
        fourth: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """After the text come the guidance scale, for networks that take it, and the pictures, if any."""
        words, pooled = flatten_branches(prompt_embeds), flatten_branches(pooled_prompt_embeds)
        more = [one for one in (first, second, third, fourth) if one is not None]
        branches = guidance_weights.shape[0]
        scale = None
        if len(more) > len(self.pictures):
            scale = per_picture(more.pop(0), branches)
        row, told = split_row(row, self.told_columns)
        seen = pictures_by_name(self.pictures, more, branches)

        def velocity(x: Tensor, label: Tensor) -> Tensor:
            residuals = self.residuals(x, label, words, pooled, scale, seen, told, branches)
            # The ControlNet's picture does not go to the transformer.
            own = [value for name, value in seen.items() if told is None or name != CONTROL]
            return self.velocity(with_pictures(x, own), label, words, pooled, scale, residuals)

        return self.advance(velocity, latent, history, noise, row, guidance_weights)

    def residuals(
        self,
        x: Tensor,
        label: Tensor,
        text: Tensor,
        pooled: Tensor,
        scale: Tensor | None,
        seen: Seen,
        told: Told | None,
        branches: int,
    ) -> Residuals | None:
        """What the ControlNet adds, if there is one: that of the positive branch, the last, for every branch.

        Source: diffusers' FluxControlNetPipeline, which evaluates it once, with the prompt.
        """
        if told is None:
            return None
        control = FluxControl(self.controlnet)
        rows, columns = x.shape[2] // PATCH, x.shape[3] // PATCH
        positive = [value.unflatten(0, (branches, -1))[-1] for value in (x, label, text, pooled, seen[CONTROL])]
        seen_by, told_by, text_by, pooled_by, picture = positive
        made = control.residuals(
            seen_by,
            told_by / 1000 * 1000,
            text_by,
            pooled_by,
            None if scale is None else scale.unflatten(0, (branches, -1))[-1],
            picture,
            told.mode,
            self.rotation(text.shape[1] + control.text_tokens_more, rows, columns),
        )
        share = told.scale.flatten(1)[:, :, None]
        double, single = ([per_picture(one * share.to(one.dtype), branches) for one in some] for some in made)
        return double, single

    def velocity(
        self,
        x: Tensor,
        label: Tensor,
        text: Tensor,
        pooled: Tensor,
        scale: Tensor | None,
        residuals: Residuals | None = None,
    ) -> Tensor:
        """The transformer, block by block, with its angles from tables.

        Args:
            x: (n, C, height, width) float32.
            label: (n,) timestep in 0 to 1000.
            text: (n, tokens, width of the joint attention).
            pooled: (n, width of the pooled embedding).
            scale: (n,) guidance scale, for networks that take it.
            residuals: What a ControlNet adds after the blocks.
        """
        net = self.transformer
        dtype = net.proj_out.weight.dtype
        height, width = x.shape[2:]
        # The network is told a share and multiplies it again, which moves some labels by one bit.
        told = label / 1000 * 1000
        # Sines and cosines are float32 inside, whatever dtype comes out.
        # As diffusers: the guidance scale is embedded like a timestep.
        scales = () if scale is None or not net.config.guidance_embeds else (scale * 1000,)
        conditioning = net.time_text_embed(told, *scales, pooled.to(dtype))
        image = net.x_embedder(pack(x.to(dtype), PATCH))
        context = net.context_embedder(text.to(dtype))
        rotation = self.rotation(text.shape[1], height // PATCH, width // PATCH)
        double, single = residuals or ([], [])
        added = spread(double, len(net.transformer_blocks)) + spread(single, len(net.single_transformer_blocks))
        for block, more in zip((*net.transformer_blocks, *net.single_transformer_blocks), added, strict=True):
            context, image = block(
                hidden_states=image, encoder_hidden_states=context, temb=conditioning, image_rotary_emb=rotation
            )
            if more is not None:
                image = image + more
        return unpack(net.proj_out(net.norm_out(image, conditioning)), height, width, PATCH)


def turn(net: Any) -> None:
    """Have every block of a network attend as `JointAttention` does."""
    for block in (*net.transformer_blocks, *net.single_transformer_blocks):
        block.attn.set_processor(JointAttention())


def with_pictures(x: Tensor, seen: Sequence[Tensor]) -> Tensor:
    """What the transformer sees: the latent, and beside it the pictures that it takes itself.

    Source: diffusers' FluxFillPipeline and FluxControlPipeline, which pack each by itself. Packed together they come
    out the same, since the cells of a token stay side by side in their channel.
    """
    return torch.cat((x, *seen), 1)


class JointAttention:
    """Attention over text and picture in one sequence, which the single blocks have as one already."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
        scores: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Names and results as diffusers calls a processor; `scores` is added to those of query and key.

        Its end is sliced: a split would make an ONNX sequence.
        """
        del attention_mask
        assert image_rotary_emb is not None
        query, key, value = heads(attn, hidden_states, ("to_q", "to_k", "to_v"))
        query, key = attn.norm_q(query), attn.norm_k(key)
        if encoder_hidden_states is not None:
            text = heads(attn, encoder_hidden_states, ("add_q_proj", "add_k_proj", "add_v_proj"))
            query = torch.cat((attn.norm_added_q(text[0]), query), 2)
            key = torch.cat((attn.norm_added_k(text[1]), key), 2)
            value = torch.cat((text[2], value), 2)
        query, key = rotated(query, image_rotary_emb), rotated(key, image_rotary_emb)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=scores).transpose(1, 2).flatten(2, 3)
        if encoder_hidden_states is None:
            return mixed
        tokens = encoder_hidden_states.shape[1]
        return attn.to_out[0](mixed[:, tokens:]), attn.to_add_out(mixed[:, :tokens])


def heads(attn: Any, x: Tensor, layers: tuple[str, str, str]) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value, (n, heads, places, width) each."""
    query, key, value = (getattr(attn, layer)(x).unflatten(2, (attn.heads, -1)).transpose(1, 2) for layer in layers)
    return query, key, value


def rotated(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """(n, heads, places, width) turned by its place's angles, in float32; neighbours are pairs.

    Source: Su et al. 2021, arXiv:2104.09864, section 3.4.2.
    """
    cosines, sines = rotation
    real, imaginary = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack((-imaginary, real), -1).flatten(-2)
    return (x.float() * cosines + turned * sines).to(x.dtype)


def angles(width: int, length: int, theta: float) -> Tensor:
    """(2, length, width) float32 cosines and sines of rotary positions 0 to length - 1, each number twice in a row.

    Source: Su et al. 2021, arXiv:2104.09864, section 3.2; in float64, as FLUX computes them.
    """
    rates = theta ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    turns = torch.outer(torch.arange(length, dtype=torch.float64), rates).repeat_interleave(2, 1)
    return torch.stack((turns.cos(), turns.sin())).float()


class FluxText(nn.Module):
    """Prompt ids to FLUX conditioning: T5's last hidden states, filling included, and CLIP's summary; equal to
    diffusers' encode_prompt."""

    def __init__(self, text_encoder: nn.Module, text_encoder_2: nn.Module) -> None:
        super().__init__()
        self.text_encoder: Any = text_encoder
        self.text_encoder_2: Any = text_encoder_2

    def forward(self, input_ids: Tensor, input_ids_2: Tensor) -> tuple[Tensor, Tensor]:
        summary = self.text_encoder(input_ids).pooler_output
        return self.text_encoder_2(input_ids_2)[0].float(), summary.float()
