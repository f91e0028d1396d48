"""What FLUX.2 hears: a prompt in a chat template, filled up; three hidden states of a language model side by side."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from diffusers.pipelines.flux2.system_messages import SYSTEM_MESSAGE
from torch import Tensor

from lssgen.errors import ExportError, ModelError
from lssgen.manifest import Heard
from lssgen.models.nets.language import LanguageText, language_recipe
from lssgen.models.nets.recipe import PROMPT, Components, Recipe, TokenRule
from lssgen.models.positions import FLUX_WORDS


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """How a FLUX.2 model reads prompts.

    Attributes:
        layers: Indices into the hidden states, in the order in which they stand side by side.
        chat, chat_options, in_pieces, removes: Fields of the `TokenRule`.
    """

    layers: tuple[int, ...]
    chat: tuple[tuple[str, str], ...]
    chat_options: Mapping[str, object] = field(default_factory=dict[str, object])
    in_pieces: bool = False
    removes: tuple[str, ...] = ()


READERS: Mapping[str, Reader] = {
    "Qwen3ForCausalLM": Reader(layers=(9, 18, 27), chat=(("user", PROMPT),), chat_options={"enable_thinking": False}),
    "Mistral3ForConditionalGeneration": Reader(
        layers=(10, 20, 30),
        chat=(("system", SYSTEM_MESSAGE), ("user", PROMPT)),
        chat_options={"add_generation_prompt": False},
        in_pieces=True,
        # It stands for a part of a picture to the model, and would be a token of its own in a prompt.
        removes=("[IMG]",),
    ),
}
"""Readers by the class of the text encoder. Source: `encode_prompt` of diffusers' two FLUX.2 pipelines."""


@dataclass(frozen=True, slots=True)
class Words:
    """The "text" graph of a checkpoint, and what its tokenizer gives it."""

    recipe: Recipe
    rule: TokenRule


def text_of(components: Components, width: int, tokens: int) -> Words:
    """How a checkpoint reads prompts.

    Args:
        components: The checkpoint.
        width: Numbers a token that the transformer reads.
        tokens: Length to which prompts are filled up.

    Raises:
        ModelError: The text encoder is of another kind or size.
        ExportError: There are more tokens than places.
    """
    if tokens > FLUX_WORDS:
        raise ExportError(f"FLUX.2 reads up to {FLUX_WORDS} tokens; lower --max-sequence-length {tokens}")
    entry = components.index.get("text_encoder")
    kind = str(entry[1]) if isinstance(entry, list | tuple) else str(entry)
    if kind not in READERS:
        raise ModelError(f"FLUX.2 reads prompts through {' or '.join(READERS)}, and not through a {kind}")
    reader = READERS[kind]
    recipe = language_recipe(components, width=width, layers=reader.layers, tokens=tokens)

    def build(parts: Components) -> WholeText:
        return WholeText(parts.module("text_encoder"), reader.layers)

    return Words(
        replace(
            recipe,
            outputs=tuple(port for port in recipe.outputs if port.name == "prompt_embeds"),
            build=build,
        ),
        TokenRule(
            component="tokenizer",
            port="input_ids",
            mask_port="attention_mask",
            length=tokens,
            pad_side="own",
            chat=reader.chat,
            chat_options=reader.chat_options,
            in_pieces=reader.in_pieces,
            removes=reader.removes,
            heard=Heard(output="prompt_embeds"),
        ),
    )


class WholeText(LanguageText):
    """The states of all tokens, for a network that reads what fills prompts up as well.

    So filling on the left counts: where a mask leaves nothing to attend to, torch's attention gives zeros.
    """

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """(n, tokens) ids and mask -> (n, tokens, width of all layers that are read)."""
        return self.states(input_ids, attention_mask)

    def through(self, layer: Any, state: Tensor, told: Mapping[str, Any], lonely: Tensor) -> Tensor:
        mixed, _ = layer.self_attn(hidden_states=layer.input_layernorm(state), **told)
        state = state + mixed * ~lonely.unsqueeze(2)
        return state + layer.mlp(layer.post_attention_layernorm(state))
