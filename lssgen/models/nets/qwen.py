"""Qwen-Image: two streams, of text and picture, that attend to each other; Qwen2.5-VL reads the prompt."""

from collections.abc import Mapping
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
from lssgen.models.positions import QWEN_POSITIONS, QWEN_WORDS

PATCH = 2

AROUND = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial "
    "relationships of the objects and background:<|im_end|>\n<|im_start|>user\n"
    f"{PROMPT}<|im_end|>\n<|im_start|>assistant\n"
)
"""Text that the published pipeline writes around a prompt: its own, not the tokenizer's chat template."""

DROP = 34
"""Tokens of it in front of the prompt, which the transformer does not see."""

USUAL_TOKENS = 48
"""Length of a prompt, for samples."""

UNKNOWN = {
    "guidance_embeds": "a network that takes the guidance scale, of which none was published",
    "use_additional_t_cond": "Qwen-Image-Layered",
    "use_layer3d_rope": "Qwen-Image-Layered",
}
"""Fields of the transformer that are on in variants which these graphs do not have."""


def blueprint(components: Components, wishes: Wishes) -> Blueprint:
    """The graphs of a Qwen-Image checkpoint.

    Raises:
        ExportError: More tokens are asked for than the transformer has positions for.
        ModelError: The transformer or the text encoder is of another variant or size.
    """
    refuse_skip(wishes.clip_skip, "Qwen-Image")
    see_words(wishes.max_sequence_length)
    net = components.config("transformer")
    length = DROP + wishes.max_sequence_length
    width = int(net["joint_attention_dim"])
    return Blueprint(
        recipes=(
            language_recipe(components, width=width, layers=(-1,), tokens=length, drop=DROP),
            qwen_step_recipe(net, wishes),
            *vae_recipes(components, wishes.channels),
        ),
        tokens=(
            TokenRule(
                component="tokenizer",
                port="input_ids",
                mask_port="attention_mask",
                length=length,
                pad_to="longest",
                around=AROUND,
                heard=Heard(output="prompt_embeds"),
                drop=DROP,
            ),
        ),
        token_axes={"asked_tokens": DROP + USUAL_TOKENS, "tokens": USUAL_TOKENS},
    )


def see_words(tokens: int) -> None:
    """See that a prompt may be so long.

    Raises:
        ExportError: It may not.
    """
    if tokens > QWEN_WORDS:
        raise ExportError(
            f"Qwen-Image reads {QWEN_WORDS} tokens of a prompt at most; ask for a --max-sequence-length up to that"
        )


def qwen_step_recipe(net: Mapping[str, Any], wishes: Wishes) -> Recipe:
    """The "step" graph.

    Raises:
        ModelError: The transformer is that of another variant.
    """
    for name, variant in UNKNOWN.items():
        if net.get(name):
            raise ModelError(
                f"the transformer's config.json has {name} on: it is {variant}, which cannot be exported; choose "
                "Qwen-Image, Qwen-Image-2512 or one that was tuned from them"
            )
    return step_recipe(
        "transformer",
        lambda parts: QwenStep(parts.module("transformer")),
        wishes=wishes,
        fed=(text("prompt_embeds", "tokens", int(net["joint_attention_dim"])), text("prompt_mask", "tokens")),
        choices={"prompt_mask": (0.0, 1.0)},
    )


class QwenStep(MaskedTextStep):
    """One step of a Qwen-Image network: docs/bundle.md, with text and its mask as conditioning.

    The mask is 0 for tokens that are there only because another prompt is longer. The published pipeline evaluates the
    branches one after the other, each with its own number of tokens; so this equals it.
    """

    rows: Tensor
    columns: Tensor
    still: Tensor
    words: Tensor

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer: Any = transformer
        for block in self.transformer.transformer_blocks:
            block.attn.set_processor(JointAttention())
        rope = self.transformer.pos_embed
        half = QWEN_POSITIONS // 2
        # As in FLUX, tables: every size takes its part of them. Not persistent: no checkpoint has them.
        still, rows, columns = (turns(width, -half, half, rope.theta) for width in rope.axes_dim)
        words = [turns(width, 0, half + QWEN_WORDS, rope.theta) for width in rope.axes_dim]
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("columns", columns, persistent=False)
        # Position 0 of the axis of time, of which a picture has one moment.
        self.register_buffer("still", still[:, half : half + 1], persistent=False)
        self.register_buffer("words", torch.cat(words, -1), persistent=False)

    def settled(self, output: Tensor, outputs: Tensor) -> Tensor:
        return lengths_kept(output, outputs[-1], PATCH)

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
        image = net.img_in(pack(x.to(dtype), PATCH))
        context = net.txt_in(net.txt_norm(text.to(dtype)))
        # The network is told a share and multiplies it again. Sines and cosines are float32 inside.
        conditioning = net.time_text_embed(label / 1000, image)
        rotation = self.rotation(text.shape[1], height // PATCH, width // PATCH)
        scores = seen(mask, image.shape[1], dtype)
        for block in net.transformer_blocks:
            context, image = block(
                hidden_states=image,
                encoder_hidden_states=context,
                encoder_hidden_states_mask=scores,
                temb=conditioning,
                image_rotary_emb=rotation,
            )
        return unpack(net.proj_out(net.norm_out(image, conditioning)), height, width, PATCH)

    def rotation(self, tokens: int, rows: int, columns: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines, (tokens + rows * columns, width of a head) each.

        Rows and columns count from the middle of the picture. Text comes first; it lies on the diagonal of all axes,
        from where the longer side of the picture ends.
        """
        middle = QWEN_POSITIONS // 2
        grid = on_grid(
            self.rows[:, middle - (rows - rows // 2) : middle + rows // 2],
            self.columns[:, middle - (columns - columns // 2) : middle + columns // 2],
        )
        start = torch.sym_max(rows // 2, columns // 2)
        still = self.still.expand(-1, rows * columns, -1)
        joint = torch.cat((self.words[:, start : start + tokens], torch.cat((still, grid), -1)), 1)
        return joint[0], joint[1]


def lengths_kept(output: Tensor, positive: Tensor, patch: int) -> Tensor:
    """Give every token of the guided output the length that it has in the positive branch.

    A batch without guidance stays what it is: the branch divided by itself is 1.

    Args:
        output: (batch, C, height, width) after guidance.
        positive: (batch, C, height, width) of the positive branch.
        patch: Cells along one side of a token.

    Source: diffusers' QwenImagePipeline, which scales by the ratio of the norms of packed tokens.
    """
    height, width = output.shape[2:]
    guided, lengths = pack(output, patch), pack(positive, patch).norm(dim=-1, keepdim=True)
    return unpack(guided * (lengths / guided.norm(dim=-1, keepdim=True)), height, width, patch)


def seen(mask: Tensor, places: int, dtype: torch.dtype) -> Tensor:
    """What is added to scores, (n, 1, tokens + places, tokens + places): nothing, but where a token does not count.

    Args:
        mask: (n, tokens), 1 where a token counts.
        places: Number of tokens of the picture, which all count.
        dtype: Type of the scores.
    """
    scores = F.pad((1 - mask) * NEVER, (0, places)).to(dtype)
    # The same for every reader; ONNX Runtime's Attention does not broadcast it.
    return scores[:, None, None].expand(-1, -1, scores.shape[1], -1)


class JointAttention:
    """Attention over text and picture in one sequence, text first."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        encoder_hidden_states_mask: Tensor,
        image_rotary_emb: tuple[Tensor, Tensor],
        attention_mask: None = None,
    ) -> tuple[Tensor, Tensor]:
        """Names and results as diffusers calls a processor; the first mask is what `seen` makes."""
        del attention_mask
        image = heads(attn, hidden_states, ("to_q", "to_k", "to_v"))
        text = heads(attn, encoder_hidden_states, ("add_q_proj", "add_k_proj", "add_v_proj"))
        query = torch.cat((attn.norm_added_q(text[0]), attn.norm_q(image[0])), 2)
        key = torch.cat((attn.norm_added_k(text[1]), attn.norm_k(image[1])), 2)
        value = torch.cat((text[2], image[2]), 2)
        query, key = rotated(query, image_rotary_emb), rotated(key, image_rotary_emb)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=encoder_hidden_states_mask)
        mixed = mixed.transpose(1, 2).flatten(2, 3)
        tokens = encoder_hidden_states.shape[1]
        return attn.to_out[0](mixed[:, tokens:]), attn.to_add_out(mixed[:, :tokens])


def turns(width: int, start: int, stop: int, theta: float) -> Tensor:
    """(2, stop - start, width) float32 cosines and sines of rotary positions, each number twice in a row.

    In float32, as the published model computes its angles, whose rounding it was trained with.

    Source: Su et al. 2021, arXiv:2104.09864, section 3.2.
    """
    angles = torch.outer(torch.arange(start, stop, dtype=torch.float32), angle_rates(width, theta))
    return torch.stack((angles.cos(), angles.sin()))


def angle_rates(width: int, theta: float) -> Tensor:
    """(width,) float32 angles of rotary position 1, each twice in a row."""
    return (1.0 / torch.pow(torch.tensor(float(theta)), torch.arange(0, width, 2).float() / width)).repeat_interleave(2)
