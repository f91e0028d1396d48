"""CogView4: one-stream transformer with shared weights for text and picture, GLM text encoder, size conditioning."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lssgen.errors import ModelError
from lssgen.manifest import Heard
from lssgen.models.nets.clip import refuse_skip
from lssgen.models.nets.language import NEVER
from lssgen.models.nets.packing import on_grid, pack, unpack
from lssgen.models.nets.recipe import Blueprint, Components, Recipe, TokenRule, Wishes
from lssgen.models.nets.step import Step, flatten_branches, sizes, step_recipe, text
from lssgen.models.nets.vae import vae_recipes
from lssgen.ports import Port

MULTIPLE = 16
"""Prompts are filled up, on the left, to a multiple of so many tokens."""

USUAL_TOKENS = 48
"""Length of a prompt, for samples."""

OLD_NORM = "AdaLayerNormContinuous"
"""Class of the last norm in diffusers 0.33, which applies SiLU to its conditioning once more."""

SIZES = (
    sizes("original_size", "original_height", "original_width"),
    sizes("target_size", "target_height", "target_width"),
    sizes("crop_coords", "crop_top", "crop_left"),
)


def blueprint(components: Components, wishes: Wishes) -> Blueprint:
    """The graphs of a CogView4 checkpoint."""
    refuse_skip(wishes.clip_skip, "CogView4")
    net = components.config("transformer")
    return Blueprint(
        recipes=(
            text_recipe(components, net),
            cogview_step_recipe(net, wishes),
            *vae_recipes(components, wishes.channels),
        ),
        tokens=(
            TokenRule(
                component="tokenizer",
                port="input_ids",
                mask_port="attention_mask",
                length=wishes.max_sequence_length,
                pad_to="longest",
                pad_side="left",
                pad_multiple=MULTIPLE,
                heard=Heard(output="prompt_embeds"),
            ),
        ),
        token_axes={"tokens": USUAL_TOKENS},
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
            Port("prompt_embeds", "float32", ("batch", "tokens", int(net["text_embed_dim"]))),
            Port("prompt_mask", "float32", ("batch", "tokens")),
        ),
        build=lambda parts: CogViewText(parts.module("text_encoder")),
        runs="prompt",
        vocabulary={"input_ids": int(components.config("text_encoder")["vocab_size"])},
    )


def cogview_step_recipe(net: Mapping[str, Any], wishes: Wishes) -> Recipe:
    return step_recipe(
        "transformer",
        lambda parts: CogViewStep(parts.module("transformer")),
        wishes=wishes,
        fed=(text("prompt_embeds", "tokens", int(net["text_embed_dim"])), text("prompt_mask", "tokens"), *SIZES),
        choices={"prompt_mask": (0.0, 1.0), **{port.name: (0.0, 768.0, 1024.0) for port, _ in SIZES}},
    )


class CogViewStep(Step):
    """One step of a CogView4 network: docs/bundle.md, with text, its mask and sizes as conditioning.

    The mask is 0 for tokens that are there only because another branch's prompt is longer. The published pipeline
    evaluates the branches one after the other, each with its own number of tokens; so this equals it.
    """

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer: Any = transformer
        if type(self.transformer.norm_out).__name__ == OLD_NORM:
            raise ModelError(
                "the installed diffusers computes the last norm of CogView4 as 0.33 did, with a SiLU that later "
                "versions leave out; upgrade it (pip install -U diffusers)"
            )
        for block in self.transformer.transformer_blocks:
            block.attn1.set_processor(JointAttention())

    def forward(
        self,
        latent: Tensor,
        history: Tensor,
        noise: Tensor,
        row: Tensor,
        guidance_weights: Tensor,
        prompt_embeds: Tensor,
        prompt_mask: Tensor,
        original_size: Tensor,
        target_size: Tensor,
        crop_coords: Tensor,
    ) -> tuple[Tensor, Tensor]:
        words, mask = flatten_branches(prompt_embeds), flatten_branches(prompt_mask)
        original, target, crop = (flatten_branches(size) for size in (original_size, target_size, crop_coords))

        def velocity(x: Tensor, label: Tensor) -> Tensor:
            dtype = self.transformer.proj_out.weight.dtype
            # Sines and cosines of times and sizes are float32 inside, whatever dtype comes out.
            conditioning = self.transformer.time_condition_embed(label, original, target, crop, dtype)
            return self.velocity(x, F.silu(conditioning), words, mask)

        return self.advance(velocity, latent, history, noise, row, guidance_weights)

    def velocity(self, x: Tensor, conditioning: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """The transformer, block by block, without index arithmetic.

        Args:
            x: (n, C, height, width) float32.
            conditioning: (n, width) embedding of time and sizes.
            text: (n, tokens, width of the text).
            mask: (n, tokens), 1 where a token counts.
        """
        net = self.transformer
        dtype, patch = net.proj_out.weight.dtype, net.config.patch_size
        height, width = x.shape[2:]
        image = net.patch_embed.proj(pack(x.to(dtype), patch))
        context = net.patch_embed.text_proj(text.to(dtype))
        rotation = self.rotation(text.shape[1], height // patch, width // patch)
        # Zeros behind the text: every cell of the picture counts.
        scores = F.pad((1 - mask) * NEVER, (0, image.shape[1])).to(dtype)
        # The same for every reader; ONNX Runtime's Attention does not broadcast it.
        scores = scores[:, None, None].expand(-1, -1, scores.shape[1], -1)
        for block in net.transformer_blocks:
            image, context = block(
                hidden_states=image,
                encoder_hidden_states=context,
                temb=conditioning,
                image_rotary_emb=rotation,
                attention_mask=scores,
            )
        return unpack(net.proj_out(net.norm_out(image, conditioning)), height, width, patch)

    def rotation(self, tokens: int, rows: int, columns: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines, (tokens + rows * columns, width of a head) each; text is not rotated.

        However large the picture, its rows and columns are spread over the positions of the training size.
        """
        rope = self.transformer.rope
        half = rope.dim // 2
        rates = 1.0 / rope.theta ** (torch.arange(0, half, 2, dtype=torch.float32) / half)
        places = [
            # Whole numbers below 2^24, so that the quotient is never rounded past a whole number.
            torch.floor(torch.arange(count, dtype=torch.float32) * size / count).unsqueeze(1) * rates
            for count, size in zip((rows, columns), rope.rope_axes_dim, strict=True)
        ]
        turns = F.pad(on_grid(*places), (0, 0, tokens, 0))
        turns = torch.cat((turns, turns), -1)
        return turns.cos(), turns.sin()


class JointAttention:
    """Attention over text and picture in one sequence, rotated as a whole: angles of 0 leave the text as it is."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor,
        image_rotary_emb: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Names and results as diffusers calls an attention processor; `attention_mask` is added to the scores."""
        joint = torch.cat((encoder_hidden_states, hidden_states), 1)
        query, key, value = (
            layer(joint).unflatten(2, (attn.heads, -1)).transpose(1, 2) for layer in (attn.to_q, attn.to_k, attn.to_v)
        )
        query = rotated(attn.norm_q(query), image_rotary_emb, joint.dtype)
        key = rotated(attn.norm_k(key), image_rotary_emb, joint.dtype)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask)
        mixed = attn.to_out[0](mixed.transpose(1, 2).flatten(2, 3))
        tokens = encoder_hidden_states.shape[1]
        return mixed[:, tokens:], mixed[:, :tokens]


def rotated(x: Tensor, rotation: tuple[Tensor, Tensor], dtype: torch.dtype) -> Tensor:
    """(n, heads, places, width) turned by its place's angles, in float32; element i pairs with element i + width / 2.

    Source: Su et al. 2021, arXiv:2104.09864, section 3.4.2, with the halves in the order of GPT-NeoX.
    """
    cosines, sines = rotation
    real, imaginary = x.float().chunk(2, -1)
    return (x.float() * cosines + torch.cat((-imaginary, real), -1) * sines).to(dtype)


class CogViewText(nn.Module):
    """Prompt ids to GLM's next-to-last hidden states, and which of them count.

    GLM reads the tokens that fill a prompt up to a multiple of 16, as diffusers' encode_prompt lets it. Those in front
    of them fill up to the length of another prompt: nobody sees them, so a prompt's states are those of the prompt
    alone.
    """

    def __init__(self, text_encoder: nn.Module) -> None:
        super().__init__()
        self.text_encoder: Any = text_encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        length = input_ids.shape[1]
        own = (attention_mask.sum(1, keepdim=True) + MULTIPLE - 1) // MULTIPLE * MULTIPLE
        # Below 0: filling in front of the prompt's own, up to a longer neighbour's length.
        places = torch.arange(length).unsqueeze(0) - (length - own)
        seen = places >= 0
        reader, read = places.unsqueeze(2), places.unsqueeze(1)
        # A token that nobody sees sees itself: a row without any would be 0 / 0.
        visible = ((read <= reader) & (read >= 0)) | (read == reader)
        dtype = self.text_encoder.embed_tokens.weight.dtype
        states = self.text_encoder(
            input_ids,
            attention_mask=torch.where(visible, 0.0, NEVER).to(dtype).unsqueeze(1),
            # Counted from the prompt's own beginning, so that filling in front changes no angle.
            position_ids=places.clamp(min=0),
            output_hidden_states=True,
            use_cache=False,
        ).hidden_states
        return states[-2].float(), seen.float()
