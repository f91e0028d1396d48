"""Qwen-Image 2.1: one stream in which text comes first and sees neither the picture nor the time; Qwen3-VL reads it."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lssgen.errors import ModelError
from lssgen.manifest import Heard
from lssgen.models.nets.clip import refuse_skip
from lssgen.models.nets.flux import heads, rotated
from lssgen.models.nets.language import NEVER, language_recipe
from lssgen.models.nets.masked import MaskedTextStep
from lssgen.models.nets.packing import on_grid
from lssgen.models.nets.qwen import angle_rates, turns
from lssgen.models.nets.recipe import PROMPT, Blueprint, Components, Recipe, TokenRule, Wishes
from lssgen.models.nets.step import step_recipe, text
from lssgen.models.nets.vae import vae_recipes
from lssgen.models.positions import QWEN21_WORDS, QWEN_POSITIONS

SYSTEM = "Comprehend and analyze the provided prompt."

AROUND = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{PROMPT}<|im_end|>\n<|im_start|>assistant\n"
"""Text that the published pipeline writes around a prompt: its own, not the processor's chat template."""

USUAL_TOKENS = 48
"""Length of a prompt, for samples."""

PROCESSOR = "processor"
"""Folder with the tokenizer, beside what prepares pictures."""


def blueprint(components: Components, wishes: Wishes) -> Blueprint:
    """The graphs of a Qwen-Image 2.1 checkpoint.

    Raises:
        ModelError: The transformer or the text encoder is of another variant or size, or the chat template is missing,
            which says how many tokens the transformer does not see.
    """
    refuse_skip(wishes.clip_skip, "Qwen-Image 2.1")
    net = components.config("transformer")
    drop = components.chat_tokens(PROCESSOR, (("system", SYSTEM),))
    length = drop + wishes.max_sequence_length
    width = int(net["context_in_dim"])
    return Blueprint(
        recipes=(
            language_recipe(components, width=width, layers=(-1,), tokens=length, drop=drop, normed=False),
            qwen21_step_recipe(net, wishes),
            *vae_recipes(components, wishes.channels),
        ),
        tokens=(
            TokenRule(
                component=PROCESSOR,
                port="input_ids",
                mask_port="attention_mask",
                length=length,
                pad_to="longest",
                around=AROUND,
                # As there: nothing at all leaves the encoder nothing to read.
                empty=" ",
                heard=Heard(output="prompt_embeds"),
                drop=drop,
            ),
        ),
        token_axes={"asked_tokens": drop + USUAL_TOKENS, "tokens": USUAL_TOKENS},
    )


def qwen21_step_recipe(net: Mapping[str, Any], wishes: Wishes) -> Recipe:
    """The "step" graph.

    Raises:
        ModelError: The transformer packs cells, which the published pipeline does not.
    """
    if net["patch_size"] != 1:
        raise ModelError(
            f"the transformer's config.json has a patch_size of {net['patch_size']}, and Qwen-Image 2.1 has one cell a "
            "token; is the checkpoint whole?"
        )
    return step_recipe(
        "transformer",
        lambda parts: Qwen21Step(parts.module("transformer")),
        wishes=wishes,
        fed=(text("prompt_embeds", "tokens", int(net["context_in_dim"])), text("prompt_mask", "tokens")),
        choices={"prompt_mask": (0.0, 1.0)},
    )


class Qwen21Step(MaskedTextStep):
    """One step of a Qwen-Image 2.1 network: docs/bundle.md, with text and its mask as conditioning.

    The mask is 0 for tokens that are there only because another prompt is longer; they are behind the others. The
    picture's place in the sequence is behind the prompt's own tokens, whatever company it has.
    """

    rows: Tensor
    columns: Tensor
    rates: Tensor
    words: Tensor

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer: Any = transformer
        rope = self.transformer.pos_embed
        half = QWEN_POSITIONS // 2
        time, *sides = rope.axes_dim
        # Tables: every size takes its part of them. Not persistent: no checkpoint has them.
        rows, columns = (turns(width, -half, half, rope.theta) for width in sides)
        words = [turns(width, 0, QWEN21_WORDS, rope.theta) for width in rope.axes_dim]
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("columns", columns, persistent=False)
        self.register_buffer("words", torch.cat(words, -1), persistent=False)
        # Angles of the axis of time at position 1; the picture's is only known when the prompt is.
        self.register_buffer("rates", angle_rates(time, rope.theta), persistent=False)

    def velocity(self, x: Tensor, label: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """The transformer, block by block.

        Args:
            x: (n, C, height, width) float32.
            label: (n,) timestep in 0 to 1000.
            text: (n, tokens, width of the text).
            mask: (n, tokens), 1 where a token counts.
        """
        net = self.transformer
        dtype = net.proj_out.weight.dtype
        height, width = x.shape[2:]
        image = net.img_in(x.to(dtype).flatten(2).transpose(1, 2))
        context = net.txt_in(text.to(dtype))
        moment = net.time_text_embed(label / 1000, image)
        # Text is told that there is no noise, at every step.
        still = net.time_text_embed(torch.zeros(1), image) if net.config.causal_condition else moment
        rotation = self.rotation(mask, height, width)
        scores = F.pad((1 - mask) * NEVER, (0, image.shape[1])).to(dtype)
        scores = scores[:, None, None].expand(-1, -1, image.shape[1], -1)
        changes = [net.modulation(embedding).unsqueeze(1).chunk(4, -1) for embedding in (still, moment)]
        for block in net.transformer_blocks:
            context, image = passed(block, context, image, changes, rotation, scores)
        return net.proj_out(net.norm_out(image, moment)).transpose(1, 2).unflatten(2, (height, width))

    def rotation(self, mask: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines, (n, 1, tokens + rows * columns, width of a head) each.

        Text lies on the diagonal of all axes, from 0 on. The picture's moment is where the text ends; its rows and
        columns count from its middle.
        """
        middle, tokens = QWEN_POSITIONS // 2, mask.shape[1]
        grid = on_grid(
            self.rows[:, middle - (rows - rows // 2) : middle + rows // 2],
            self.columns[:, middle - (columns - columns // 2) : middle + columns // 2],
        )
        angles = mask.sum(1, keepdim=True) * self.rates
        moment = torch.stack((angles.cos(), angles.sin())).unsqueeze(2).expand(-1, -1, rows * columns, -1)
        picture = torch.cat((moment, grid.unsqueeze(1).expand(-1, mask.shape[0], -1, -1)), -1)
        words = self.words[:, None, :tokens].expand(-1, mask.shape[0], -1, -1)
        joint = torch.cat((words, picture), 2).unsqueeze(2)
        return joint[0], joint[1]


Changes = list[tuple[Tensor, ...]]
"""Scale and gate of attention, scale and gate of the feed-forward, (n or 1, 1, width), of text and of picture."""


def passed(
    block: Any, text: Tensor, image: Tensor, changes: Changes, rotation: tuple[Tensor, Tensor], scores: Tensor
) -> tuple[Tensor, Tensor]:
    """One block; text and picture go through its products together, and are scaled apart.

    Args:
        block: Of diffusers.
        text, image: (n, tokens, width) each.
        changes: See `Changes`.
        rotation: As from `Qwen21Step.rotation`.
        scores: (n, 1, picture's tokens, all tokens), added to the picture's scores.
    """
    tokens = text.shape[1]
    streams = (text, image)

    def attend(x: Tensor) -> Tensor:
        return attended(block.attn, x, tokens, rotation, scores)

    for layer, mix, (scale, gate) in (
        (block.img_norm1, attend, (0, 1)),
        (block.img_norm2, block.img_mlp, (2, 3)),
    ):
        scaled = [layer(x) * (1 + change[scale]) for x, change in zip(streams, changes, strict=True)]
        mixed = mix(torch.cat(scaled, 1))
        parts = (mixed[:, :tokens], mixed[:, tokens:])
        streams = tuple(x + change[gate].tanh() * part for x, change, part in zip(streams, changes, parts, strict=True))
    if text.dtype is torch.float16:  # as there
        streams = tuple(x.clip(-65504, 65504) for x in streams)
    return streams[0], streams[1]


def attended(attn: Any, x: Tensor, tokens: int, rotation: tuple[Tensor, Tensor], scores: Tensor) -> Tensor:
    """(n, places, width) -> the same. A token of the text sees those before it, the picture sees everything."""
    query, key, value = heads(attn, x, ("to_q", "to_k", "to_v"))
    query, key = rotated(attn.norm_q(query), rotation), rotated(attn.norm_k(key), rotation)
    words = F.scaled_dot_product_attention(
        query[:, :, :tokens], key[:, :, :tokens], value[:, :, :tokens], is_causal=True
    )
    picture = F.scaled_dot_product_attention(query[:, :, tokens:], key, value, attn_mask=scores)
    return attn.to_out[0](torch.cat((words, picture), 2).transpose(1, 2).flatten(2, 3))
