"""The ControlNets of FLUX.1: what they add to the picture's tokens after the transformer's blocks."""

from typing import Any

import torch
from torch import Tensor

from lssgen.models.nets.packing import pack

PATCH = 2

Residuals = tuple[list[Tensor], list[Tensor]]
"""Numbers that are added after double and after single blocks, (batch, tokens, width) each."""


class FluxControl:
    """A FluxControlNetModel, called with the attention and the angles of the transformer beside it.

    Not a module: the parameters are those of the step's own `controlnet`.

    Args:
        net: The module of diffusers.
    """

    def __init__(self, net: Any) -> None:
        self.net = net

    @property
    def text_tokens_more(self) -> int:
        """Tokens in front of the text: a union network's, that says which kind of picture it is."""
        return int(self.net.union)

    def residuals(
        self,
        x: Tensor,
        told: Tensor,
        text: Tensor,
        pooled: Tensor,
        scale: Tensor | None,
        picture: Tensor,
        mode: Tensor,
        rotation: tuple[Tensor, Tensor],
    ) -> Residuals:
        """Evaluate it.

        Args:
            x: (n, C, height, width) float32.
            told: (n,) timestep in 0 to 1000.
            text: (n, tokens, width of the joint attention).
            pooled: (n, width of the pooled embedding).
            scale: (n,) guidance scale; used if the ControlNet takes it.
            picture: (n, C, height, width) latent of the control picture.
            mode: (n, modes) 1 for the kind of the picture.
            rotation: Angles of text, with `text_tokens_more` more, and picture.
        """
        net = self.net
        dtype = net.x_embedder.weight.dtype
        scales = (scale * 1000,) if net.config.guidance_embeds and scale is not None else ()
        conditioning = net.time_text_embed(told, *scales, pooled.to(dtype))
        image = net.x_embedder(pack(x.to(dtype), PATCH)) + net.controlnet_x_embedder(pack(picture.to(dtype), PATCH))
        context = net.context_embedder(text.to(dtype))
        if net.union:
            # All of its vectors, of which one is chosen: a layer has its weights only while it is called.
            kinds = net.controlnet_mode_embedder(torch.arange(mode.shape[1], device=mode.device))
            kind = mode.to(dtype) @ kinds
            context = torch.cat((kind.unsqueeze(1), context), 1)
        kept: list[list[Tensor]] = []
        for blocks in (net.transformer_blocks, net.single_transformer_blocks):
            kept.append([])
            for block in blocks:
                context, image = block(
                    hidden_states=image, encoder_hidden_states=context, temb=conditioning, image_rotary_emb=rotation
                )
                kept[-1].append(image)
        double, single = kept
        return (
            [out(one) for out, one in zip(net.controlnet_blocks, double, strict=True)],
            [out(one) for out, one in zip(net.controlnet_single_blocks, single, strict=True)],
        )


def spread(residuals: list[Tensor], blocks: int) -> list[Tensor | None]:
    """What is added after every one of so many blocks: neighbours share, where there are fewer.

    Source: diffusers' FluxTransformer2DModel, `interval_control`.
    """
    if not residuals:
        return [None] * blocks
    share = -(-blocks // len(residuals))
    return [residuals[block // share] for block in range(blocks)]
