"""Language models as text encoders: their hidden states between layers are the prompt's conditioning."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from lssgen.errors import ModelError
from lssgen.models.nets.recipe import Components, Recipe
from lssgen.ports import Port

NEVER = -30000.0
"""Added to the score of a token that must not be attended to; every precision holds it, and its exponential is 0."""

TOWERS = ("lm_head", "visual", "vision_tower", "multi_modal_projector")
"""Parts of published checkpoints that encoding a text does not take: the head, and what reads pictures."""


class LanguageText(nn.Module):
    """Prompt ids to hidden states of a decoder-only language model, and which of them count.

    Only what is read is kept: layers above the highest one, the last norm below it, the head and what reads pictures
    are taken off, so that they are neither exported nor looked for in the checkpoint. The states are those that
    transformers' `output_hidden_states` gives, filling on the right included: it sees the prompt and not itself.
    Filling on the left, which changes nothing behind it, sees itself.

    Args:
        text_encoder: A model of transformers whose layers take a mask and rotary angles: Qwen3, Qwen2.5-VL, Mistral 3.
        layers: Indices into `hidden_states`, put side by side in the last axis: 0 is the embedding, -1 the last norm's
            output, -2 what goes into the last layer.
        drop: Tokens to leave out at the beginning, of a chat template.
        normed: False to read what goes into the last norm in place of what comes out.

    Attributes:
        left_out: Beginnings of the names of tensors that were taken off, for `Weights.fit`.

    Raises:
        ModelError: The model has fewer layers.
    """

    def __init__(self, text_encoder: nn.Module, layers: Sequence[int], *, drop: int = 0, normed: bool = True) -> None:
        super().__init__()
        model: Any = decoder_of(text_encoder)
        count = len(model.layers)
        self.read = tuple(at_layer(layer, count) for layer in layers)
        self.drop = drop
        highest = max(self.read)
        gone = [*TOWERS, *(f"layers.{layer}" for layer in range(highest, count))]
        model.layers = model.layers[:highest]
        if highest < count or not normed:
            gone.append("norm")
            model.norm = nn.Identity()
        self.left_out = tuple(f"text_encoder.{name}." for name in gone)
        self.text_encoder: Any = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Prompts to conditioning.

        Args:
            input_ids: (n, tokens) int64.
            attention_mask: (n, tokens) int64, 0 for filling, which is on one side only.

        Returns:
            (n, tokens - drop, width of all layers that are read) and (n, tokens - drop) float32.
        """
        return self.states(input_ids, attention_mask), attention_mask[:, self.drop :].float()

    def states(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The first of the two that `forward` returns."""
        model, highest = self.text_encoder, max(self.read)
        visible, places, lonely = seen(attention_mask)
        state = model.embed_tokens(input_ids)
        scores = torch.where(visible, 0.0, NEVER).to(state.dtype).unsqueeze(1)
        told = {
            "attention_mask": scores,
            "position_embeddings": turned(model.rotary_emb, state, places),
            "position_ids": places,
        }
        states = [state]
        for layer in model.layers:
            state = self.through(layer, state, told, lonely)
            states.append(state)
        # As in transformers, the last of them is behind the norm, if it is there.
        states[highest] = model.norm(state)
        return torch.cat([states[layer][:, self.drop :].float() for layer in self.read], -1)

    def through(self, layer: Any, state: Tensor, told: Mapping[str, Any], lonely: Tensor) -> Tensor:
        """One layer.

        Args:
            layer: Of transformers.
            state: (n, tokens, width).
            told: Mask, places and angles, by the names that the layer knows them by.
            lonely: (n, tokens) booleans, true for filling on the left.
        """
        del lonely
        return layer(state, **told)


def seen(attention_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Which tokens see which, (n, tokens, tokens) booleans by reader; every token's place; whether it sees itself only.

    A token sees those that count up to itself. Places count from the first token that does. Both are (n, tokens).
    """
    place = torch.arange(attention_mask.shape[1])
    visible = (place.unsqueeze(0) <= place.unsqueeze(1)) & (attention_mask != 0).unsqueeze(1)
    lonely = visible.sum(2) == 0  # in front of the prompt
    # A token that nobody sees sees itself: a row without any would be 0 / 0.
    visible = visible | (lonely.unsqueeze(2) & (place.unsqueeze(0) == place.unsqueeze(1)))
    # Counted from the prompt's own beginning, so that filling in front changes no angle.
    return visible, (place - lonely.sum(1, keepdim=True)).clamp(min=0), lonely


def turned(rotary: Any, state: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines of every token's place, (n, tokens, width of a head), in the type of the states.

    Models that read pictures count places along three axes, which are one and the same in a text; so their shares of
    the angles need not be put together.
    """
    if not hasattr(rotary, "mrope_section"):
        return rotary(state, places)
    half = places.unsqueeze(-1).float() * rotary.inv_freq
    angles = torch.cat((half, half), -1)
    cosines, sines = (wave * rotary.attention_scaling for wave in (angles.cos(), angles.sin()))
    return cosines.to(state.dtype), sines.to(state.dtype)


def decoder_of(text_encoder: Any) -> nn.Module:
    """The stack of layers inside a language model with a head, or inside one that reads pictures too."""
    while not hasattr(text_encoder, "embed_tokens"):
        text_encoder = text_encoder.language_model if hasattr(text_encoder, "language_model") else text_encoder.model
    return text_encoder


def at_layer(layer: int, count: int) -> int:
    """Index from 0 to `count` of one of `hidden_states`.

    Raises:
        ModelError: The model has fewer layers.
    """
    if not -count - 1 <= layer <= count:
        raise ModelError(f"hidden states of layer {layer} are read, but the text encoder has {count} layers")
    return layer % (count + 1)


def language_config(components: Components) -> Mapping[str, Any]:
    """Configuration of the language model in a checkpoint's text encoder, which may read pictures too."""
    config = components.config("text_encoder")
    return cast(Mapping[str, Any], config.get("text_config") or config)


def language_recipe(
    components: Components,
    *,
    width: int,
    layers: Sequence[int],
    tokens: int,
    drop: int = 0,
    normed: bool = True,
) -> Recipe:
    """The "text" graph of a family with a language model as its only text encoder.

    Args:
        components: The checkpoint.
        width: Numbers a token that the denoiser reads.
        layers, drop, normed: As in `LanguageText`.
        tokens: Longest prompt.

    Raises:
        ModelError: The text encoder is of another size, or has fewer layers.
    """
    config = language_config(components)
    see_size(config, width, layers, tokens)
    asked = "tokens" if not drop else "asked_tokens"
    return Recipe(
        name="text",
        components=("text_encoder",),
        inputs=(Port("input_ids", "int64", ("batch", asked)), Port("attention_mask", "int64", ("batch", asked))),
        outputs=(
            Port("prompt_embeds", "float32", ("batch", "tokens", width)),
            Port("prompt_mask", "float32", ("batch", "tokens")),
        ),
        build=lambda parts: LanguageText(parts.module("text_encoder"), layers, drop=drop, normed=normed),
        runs="prompt",
        vocabulary={"input_ids": int(config["vocab_size"])},
        settings={"layers": list(layers), "drop": drop, "normed": normed},
    )


def see_size(config: Mapping[str, Any], width: int, layers: Sequence[int], tokens: int) -> None:
    """See that a language model is the one that the denoiser was trained with, as far as sizes tell.

    Raises:
        ModelError: It is not.
    """
    own, count = int(config["hidden_size"]), int(config["num_hidden_layers"])
    for layer in layers:
        at_layer(layer, count)
    if own * len(layers) != width:
        raise ModelError(
            f"the text encoder is of another size: its hidden states have {own} numbers a token, {len(layers)} of them "
            f"make {own * len(layers)}, and the transformer reads {width}; give the checkpoint its own text encoder"
        )
    window = config.get("sliding_window")
    if window and "sliding_attention" in (config.get("layer_types") or ()) and int(window) < tokens:
        raise ModelError(
            f"the text encoder's attention reaches back {window} tokens only, less than the {tokens} of a prompt; give "
            f"--max-sequence-length {window} or less"
        )
