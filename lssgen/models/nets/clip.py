"""What families with CLIP text encoders share: layers left out at the end, and where tokens are heard."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from lssgen.errors import ExportError
from lssgen.manifest import Heard
from lssgen.models.nets.recipe import Components


def heard_side_by_side(components: Components, encoders: Sequence[str]) -> tuple[Heard, ...]:
    """Where the tokens of encoders are heard whose hidden states stand side by side in "prompt_embeds"."""
    found: list[Heard] = []
    begin = 0
    for name in encoders:
        end = begin + int(components.config(name)["hidden_size"])
        found.append(Heard(output="prompt_embeds", columns=(begin, end)))
        begin = end
    return tuple(found)


def checked_skip(skip: int, clip: Mapping[str, Any], *, kept: int) -> int:
    """Layers to leave out, as diffusers counts them, if the encoder has so many.

    Args:
        skip: Layers to leave out at the end, beyond what the family leaves out.
        clip: The encoder's config.
        kept: Place of the hidden states that the family reads, counted from the end.

    Raises:
        ExportError: It has not.
    """
    most = int(clip["num_hidden_layers"]) - kept
    if skip > most:
        raise ExportError(
            f"--clip-skip {skip} leaves nothing of a text encoder with {clip['num_hidden_layers']} layers; give "
            f"{most} at most (counted as in diffusers: what other programs call clip skip 2 is 1)"
        )
    return skip


def refuse_skip(skip: int, family: str) -> None:
    """See that no layers are to be left out.

    Raises:
        ExportError: They are, and the family's pipelines do not offer it.
    """
    if skip:
        raise ExportError(f"--clip-skip is for SD 1.x, 2.x and SDXL; {family} is exported without it")


def refuse_masked(clip: Mapping[str, Any]) -> None:
    """See that an encoder reads the tokens that fill up, as every published one does.

    Raises:
        ExportError: It is told not to.
    """
    if clip.get("use_attention_mask"):
        raise ExportError(
            "the text encoder's config asks for an attention mask (use_attention_mask), which exports do not have"
        )


def final_norm(text_encoder: Any) -> nn.Module:
    """CLIP's last norm, in transformers before and after the encoder lost its outer shell."""
    return getattr(text_encoder, "text_model", text_encoder).final_layer_norm
