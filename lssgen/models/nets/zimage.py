"""Z-Image and Z-Image-Turbo: one stream of picture and text, each refined before they meet, Qwen3 as text encoder."""

from collections.abc import Mapping
from math import log
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lssgen.errors import ExportError, ModelError
from lssgen.manifest import Heard
from lssgen.models.nets.clip import refuse_skip
from lssgen.models.nets.flux import heads, rotated
from lssgen.models.nets.language import NEVER, language_recipe
from lssgen.models.nets.masked import MaskedTextStep
from lssgen.models.nets.packing import on_grid, pack, unpack
from lssgen.models.nets.recipe import PROMPT, Blueprint, Components, Recipe, TokenRule, Wishes
from lssgen.models.nets.step import step_recipe, text
from lssgen.models.nets.vae import vae_recipes

PATCH = 2
EMBEDDER = "2-1"
"""Key of the layers for squares of two cells, one frame deep; a network may have others, which the pipeline leaves."""

MULTIPLE = 32
"""Pictures and prompts are filled up to a multiple of so many tokens, with tokens that were trained for it."""

USUAL_TOKENS = 64
"""Length of a prompt, for samples."""

LAYERS = (-2,)
"""Hidden states of Qwen3 that the network reads."""

ROOM = 1 / 64
"""Factor of attentions and of feed-forwards before the norms behind them, which undo it: float16 then holds what is 64
times as large. A power of two, so that no bit of a number changes."""


def blueprint(components: Components, wishes: Wishes) -> Blueprint:
    """The graphs of a Z-Image checkpoint.

    Raises:
        ModelError: The transformer is one of another pipeline, or the text encoder another transformer's.
        ExportError: Longer prompts are asked for than the network knows positions for.
    """
    refuse_skip(wishes.clip_skip, "Z-Image")
    net = components.config("transformer")
    see_network(net, wishes.max_sequence_length)
    return Blueprint(
        recipes=(
            language_recipe(
                components, width=int(net["cap_feat_dim"]), layers=LAYERS, tokens=wishes.max_sequence_length
            ),
            zimage_step_recipe(net, wishes),
            *vae_recipes(components, wishes.channels),
        ),
        tokens=(
            TokenRule(
                component="tokenizer",
                port="input_ids",
                mask_port="attention_mask",
                length=wishes.max_sequence_length,
                pad_to="longest",
                pad_multiple=MULTIPLE,
                chat=(("user", PROMPT),),
                chat_options={"enable_thinking": True},
                heard=Heard(output="prompt_embeds"),
            ),
        ),
        token_axes={"tokens": USUAL_TOKENS},
    )


def see_network(net: Mapping[str, Any], tokens: int) -> None:
    """See that the transformer is one for pictures from text, and knows the positions of prompts of so many tokens.

    Raises:
        ModelError: It also reads pictures, or has no layers for squares of two cells.
        ExportError: The prompts are longer.
    """
    if net.get("siglip_feat_dim") is not None:
        raise ModelError(
            "the transformer reads pictures through SigLIP, as ZImageOmniPipeline uses it, which is not supported; "
            "export the checkpoint of ZImagePipeline"
        )
    if [PATCH, 1] not in [list(sizes) for sizes in zip(net["all_patch_size"], net["all_f_patch_size"], strict=True)]:
        raise ModelError(f"the transformer has no layers for squares of {PATCH} cells, which ZImagePipeline takes")
    # Position 0 is that of what fills pictures up, and the picture's own comes behind the text.
    longest = (int(net["axes_lens"][0]) - 2) // MULTIPLE * MULTIPLE
    if tokens > longest:
        raise ExportError(
            f"prompts of {tokens} tokens were asked for, and this Z-Image knows positions for {longest}; give "
            f"--max-sequence-length {longest} or less"
        )


def zimage_step_recipe(net: Mapping[str, Any], wishes: Wishes) -> Recipe:
    return step_recipe(
        "transformer",
        lambda parts: ZImageStep(parts.module("transformer")),
        wishes=wishes,
        fed=(text("prompt_embeds", "tokens", int(net["cap_feat_dim"])), text("prompt_mask", "tokens")),
        choices={"prompt_mask": (0.0, 1.0)},
    )


class ZImageStep(MaskedTextStep):
    """One step of a Z-Image network: docs/bundle.md, with text and its mask as conditioning.

    The network was trained with pictures and prompts filled up to multiples of 32 tokens, and sees that filling; it
    does not see what fills a prompt up to a longer neighbour's length. The picture's depth is the place behind its
    prompt, so that neighbours in a batch, and branches, have depths of their own.
    """

    depths: Tensor
    rows: Tensor
    columns: Tensor

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer: Any = transformer
        net = self.transformer
        for block in (*net.noise_refiner, *net.context_refiner, *net.layers):
            block.attention.set_processor(JointAttention())
            block.feed_forward._forward_silu_gating = gated  # what diffusers calls between the products
            for norm in (block.attention_norm2, block.ffn_norm2):
                norm.eps *= ROOM**2
        # Called as a layer, and so with its own two weights there while it computes: the tokens of the filling.
        net.forward = self.computed
        # Tables, not arithmetic: every size takes its part of them, which is a constant to engines built for the size.
        # Not persistent: no checkpoint has them.
        for name, width, length in zip(("depths", "rows", "columns"), net.axes_dims, net.axes_lens, strict=True):
            self.register_buffer(name, angles(width, length, net.rope_theta), persistent=False)

    def velocity(self, x: Tensor, label: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """(n, C, height, width) of the transformer, for the arguments of `computed`."""
        return self.transformer(x, label, text, mask)

    def computed(self, x: Tensor, label: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """The transformer, block by block.

        Args:
            x: (n, C, height, width) float32.
            label: (n,) timestep in 0 to 1000.
            text: (n, tokens, width of the text), filled up to a multiple of 32.
            mask: (n, tokens), 1 where a token is the prompt's.
        """
        net = self.transformer
        dtype = net.layers[0].attention.to_q.weight.dtype
        height, width = x.shape[2:]
        rows, columns = height // PATCH, width // PATCH
        count = rows * columns
        conditioning = self.conditioning(label).to(dtype)
        own = torch.ceil(mask.sum(1, keepdim=True) / MULTIPLE) * MULTIPLE
        # Zeros for what is seen: the prompt with its own filling.
        unseen = torch.where(torch.arange(text.shape[1]) < own, 0.0, NEVER).to(dtype)

        real, place = filling(count)
        image = net.all_x_embedder[EMBEDDER](patches(x.to(dtype)).index_select(1, place))
        image = torch.where(real.unsqueeze(1), image, net.x_pad_token)
        image_rotation = self.image_rotation(own, rows, columns)
        for block in net.noise_refiner:
            image = block(image, None, image_rotation, conditioning)

        words = torch.where((mask != 0).unsqueeze(2), net.cap_embedder(text.to(dtype)), net.cap_pad_token)
        text_rotation = self.text_rotation(text.shape[1])
        for block in net.context_refiner:
            words = block(words, to_all(unseen), text_rotation)

        joint = torch.cat((image, words), 1)
        scores = to_all(F.pad(unseen, (image.shape[1], 0)))
        rotation = torch.cat((image_rotation, text_rotation.expand(-1, x.shape[0], -1, -1)), 2)
        for block in net.layers:
            joint = block(joint, scores, rotation, conditioning)
        out = net.all_final_layer[EMBEDDER](joint[:, :count], c=conditioning)
        # The network predicts the way to the picture, and schedules count the way to noise.
        return -unpatched(out, height, width)

    def conditioning(self, label: Tensor) -> Tensor:
        """(n, 256) embedding of (n,) timesteps; the network counts from noise, 0, to the picture, 1000."""
        embedder = self.transformer.t_embedder
        half = embedder.frequency_embedding_size // 2
        rates = torch.exp(-log(10000) * torch.arange(half, dtype=torch.float32) / half)
        turns = ((1000 - label) / 1000 * self.transformer.t_scale).unsqueeze(1) * rates
        waves = torch.cat((turns.cos(), turns.sin()), -1)
        return embedder.mlp(waves.to(embedder.mlp[0].weight.dtype))

    def image_rotation(self, own: Tensor, rows: int, columns: int) -> Tensor:
        """(2, n, tokens of the picture with filling, width of a head) cosines and sines.

        Args:
            own: (n, 1) length of the prompts with their own filling: the picture's depth is one more.
            rows, columns: Of the picture, in tokens.
        """
        real, place = filling(rows * columns)
        depth = self.depths.index_select(1, (own[:, 0] + 1).long()).unsqueeze(2)
        grid = on_grid(self.rows[:, :rows], self.columns[:, :columns]).index_select(1, place).unsqueeze(1)
        turned = torch.cat((depth.expand(-1, -1, grid.shape[2], -1), grid.expand(-1, own.shape[0], -1, -1)), -1)
        # What fills up stands at the origin, and is not turned.
        return torch.where(real.unsqueeze(1), turned, self.origin())

    def text_rotation(self, tokens: int) -> Tensor:
        """(2, 1, tokens, width of a head) cosines and sines: the text goes from depth 1 on."""
        depths = self.depths[:, 1 : tokens + 1].unsqueeze(1)
        rest = self.origin()[..., depths.shape[-1] :].expand(-1, -1, tokens, -1)
        return torch.cat((depths, rest), -1)

    def origin(self) -> Tensor:
        """(2, 1, 1, width of a head) cosine and sine of no turn."""
        return torch.cat([table[:, :1] for table in (self.depths, self.rows, self.columns)], -1).unsqueeze(1)


class JointAttention:
    """Attention within one sequence, turned by the angles of its places, and made smaller by `ROOM`."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: None = None,
        attention_mask: Tensor | None = None,
        freqs_cis: Tensor | None = None,
    ) -> Tensor:
        """Names and results as diffusers calls a processor; `attention_mask` is added to the scores."""
        del encoder_hidden_states
        assert freqs_cis is not None
        query, key, value = heads(attn, hidden_states, ("to_q", "to_k", "to_v"))
        # One axis for all heads.
        cosines, sines = freqs_cis.unsqueeze(2).unbind(0)
        query, key = (rotated(norm(x), (cosines, sines)) for norm, x in ((attn.norm_q, query), (attn.norm_k, key)))
        mixed = F.scaled_dot_product_attention(query, key, value * ROOM, attn_mask=attention_mask)
        return attn.to_out[0](mixed.transpose(1, 2).flatten(2, 3))


def gated(gate: Tensor, x: Tensor) -> Tensor:
    """What stands between the products of a feed-forward, made smaller by `ROOM`."""
    return F.silu(gate) * (x * ROOM)


def filling(count: int) -> tuple[Tensor, Tensor]:
    """Which of a picture's places are real once they are filled up, and whose token stands at each.

    Args:
        count: Tokens of the picture.
    """
    place = torch.arange((count + MULTIPLE - 1) // MULTIPLE * MULTIPLE)
    real = place < count
    return real, torch.where(real, place, 0)


def to_all(unseen: Tensor) -> Tensor:
    """(n, tokens) -> (n, 1, tokens, tokens): the same for every reader; ONNX Runtime's Attention does not broadcast."""
    return unseen[:, None, None].expand(-1, -1, unseen.shape[1], -1)


def patches(x: Tensor) -> Tensor:
    """(n, C, height, width) -> (n, tokens, 4 * C): channels vary fastest, unlike in `pack`."""
    return pack(x, PATCH).unflatten(2, (-1, PATCH * PATCH)).transpose(2, 3).flatten(2)


def unpatched(tokens: Tensor, height: int, width: int) -> Tensor:
    """Undoes `patches`; height and width are those of the latent."""
    return unpack(tokens.unflatten(2, (PATCH * PATCH, -1)).transpose(2, 3).flatten(2), height, width, PATCH)


def angles(width: int, length: int, theta: float) -> Tensor:
    """(2, length, width) float32 cosines and sines of rotary positions 0 to length - 1, each number twice in a row.

    Source: Su et al. 2021, arXiv:2104.09864, section 3.2; the angles in float64 and then float32, as published.
    """
    rates = 1.0 / theta ** (torch.arange(0, width, 2, dtype=torch.float64) / width)
    turns = torch.outer(torch.arange(length, dtype=torch.float64), rates).float().repeat_interleave(2, 1)
    return torch.stack((turns.cos(), turns.sin()))
