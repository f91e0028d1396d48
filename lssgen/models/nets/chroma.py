"""Chroma: FLUX.1's blocks, modulated by one small network for all of them, guided by branches, T5 alone as text."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lssgen.errors import ExportError
from lssgen.manifest import Heard
from lssgen.models.nets.clip import refuse_skip
from lssgen.models.nets.flux import PATCH, PackedStep
from lssgen.models.nets.language import NEVER
from lssgen.models.nets.masked import MaskedTextStep
from lssgen.models.nets.packing import pack, unpack
from lssgen.models.nets.recipe import Blueprint, Components, Recipe, TokenRule, Wishes
from lssgen.models.nets.step import step_recipe, text
from lssgen.models.nets.vae import vae_recipes
from lssgen.ports import Port


def blueprint(components: Components, wishes: Wishes) -> Blueprint:
    """The graphs of a Chroma checkpoint.

    Raises:
        ExportError: T5 is not wanted.
    """
    if not wishes.t5:
        raise ExportError("Chroma reads its prompt through T5 and cannot do without; export it with T5")
    refuse_skip(wishes.clip_skip, "Chroma")
    net = components.config("transformer")
    return Blueprint(
        recipes=(
            text_recipe(components, net),
            chroma_step_recipe(net, wishes),
            *vae_recipes(components, wishes.channels),
        ),
        tokens=(
            TokenRule(
                component="tokenizer",
                port="input_ids",
                mask_port="attention_mask",
                length=wishes.max_sequence_length,
                heard=Heard(output="prompt_embeds"),
            ),
        ),
        token_axes={"tokens": wishes.max_sequence_length},
    )


def text_recipe(components: Components, net: Mapping[str, Any]) -> Recipe:
    return Recipe(
        name="text",
        components=("text_encoder",),
        inputs=(
            Port("input_ids", "int64", ("batch", "tokens")),
            Port("attention_mask", "int64", ("batch", "tokens")),
        ),
        outputs=(
            Port("prompt_embeds", "float32", ("batch", "tokens", int(net["joint_attention_dim"]))),
            Port("prompt_mask", "float32", ("batch", "tokens")),
        ),
        build=lambda parts: ChromaText(parts.module("text_encoder")),
        runs="prompt",
        vocabulary={"input_ids": int(components.config("text_encoder")["vocab_size"])},
    )


def chroma_step_recipe(net: Mapping[str, Any], wishes: Wishes) -> Recipe:
    return step_recipe(
        "transformer",
        lambda parts: ChromaStep(parts.module("transformer")),
        wishes=wishes,
        fed=(text("prompt_embeds", "tokens", int(net["joint_attention_dim"])), text("prompt_mask", "tokens")),
        choices={"prompt_mask": (0.0, 1.0)},
    )


class ChromaText(nn.Module):
    """Prompt ids to T5's last hidden states, which do not see the filling, and a mask that counts one token of it.

    Equal to diffusers' encode_prompt: the network was trained to see one token of filling.
    """

    def __init__(self, text_encoder: nn.Module) -> None:
        super().__init__()
        self.text_encoder: Any = text_encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        hidden = torch.where(attention_mask != 0, 0.0, NEVER)[:, None, None].expand(-1, -1, input_ids.shape[1], -1)
        dtype = self.text_encoder.shared.weight.dtype
        states = self.text_encoder(input_ids, attention_mask=hidden.to(dtype))[0]
        counted = torch.arange(input_ids.shape[1]) <= attention_mask.sum(1, keepdim=True)
        return states.float(), counted.float()


class ChromaStep(MaskedTextStep, PackedStep):
    """One step of a Chroma network: docs/bundle.md, with text and its mask as conditioning.

    The mask is added to the scores as it is, 1 between tokens that count and 0 elsewhere, which hides nothing: that is
    what diffusers' pipeline computes.
    """

    def velocity(self, x: Tensor, label: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """The transformer, block by block, with its angles from tables.

        Args:
            x: (n, C, height, width) float32.
            label: (n,) timestep in 0 to 1000.
            text: (n, tokens, width of the joint attention).
            mask: (n, tokens), 1 where a token counts.
        """
        net = self.transformer
        dtype = net.proj_out.weight.dtype
        height, width = x.shape[2:]
        modulation = self.modulation(label / 1000 * 1000, dtype)
        image = net.x_embedder(pack(x.to(dtype), PATCH))
        context = net.context_embedder(text.to(dtype))
        rotation = self.rotation(text.shape[1], height // PATCH, width // PATCH)
        counted = F.pad(mask, (0, image.shape[1]), value=1.0).to(dtype)
        scores = {"scores": counted[:, None, None] * counted[:, None, :, None]}
        singles, doubles = net.single_transformer_blocks, net.transformer_blocks
        # All of the picture's modulations come before all of the text's, behind those of the single blocks.
        for at, block in enumerate(doubles):
            first = 3 * len(singles) + 6 * at
            second = first + 6 * len(doubles)
            both = torch.cat((modulation[:, first : first + 6], modulation[:, second : second + 6]), 1)
            context, image = block(image, context, both, rotation, joint_attention_kwargs=scores)
        joint = torch.cat((context, image), 1)
        for at, block in enumerate(singles):
            joint = block(joint, modulation[:, 3 * at : 3 * at + 3], rotation, joint_attention_kwargs=scores)
        image = net.norm_out(joint[:, text.shape[1] :], modulation[:, -2:])
        return unpack(net.proj_out(image), height, width, PATCH)

    def modulation(self, time: Tensor, dtype: torch.dtype) -> Tensor:
        """(n, number of modulations, width) for (n,) timesteps, of all blocks at once."""
        embedder = self.transformer.time_text_embed
        # The second half is a guidance scale, which the pipeline leaves at 0.
        told = torch.cat((embedder.time_proj(time), embedder.guidance_proj(torch.zeros_like(time))), 1)
        places = embedder.mod_proj.unsqueeze(0).expand(time.shape[0], -1, -1)
        told = told.unsqueeze(1).expand(-1, places.shape[1], -1)
        return self.transformer.distilled_guidance_layer(torch.cat((told, places), 2).to(dtype))
