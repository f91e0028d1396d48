"""The UNet of Stable Diffusion 1, 2 and XL, block by block, and its step."""

from collections.abc import Mapping, Sequence
from math import log
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lssgen.errors import ModelError
from lssgen.models.nets.control import CONTROL, pictures_by_name, refuse_unknown_channels, split_row, with_mask
from lssgen.models.nets.recipe import Components
from lssgen.models.nets.step import GUIDANCE, NOTHING, RESCALE, Beside, Fed, Step, per_picture
from lssgen.models.nets.unet_control import Residuals, attended, prepared, scaled

PLAIN: Mapping[str, object] = {
    "class_embed_type": None,
    "num_class_embeds": None,
    "encoder_hid_dim_type": None,
    "time_embedding_act_fn": None,
    "center_input_sample": False,
}
"""Fields of a UNet's configuration, and the only value at which `predict` computes what diffusers does."""


def checked_unet(components: Components, added: str | None) -> Mapping[str, Any]:
    """The UNet's configuration, if it is a text-to-image network of the kind that `Unet` knows.

    Args:
        components: The checkpoint.
        added: The `addition_embed_type` that the family has.

    Raises:
        ModelError: Names the field that does not fit.
    """
    net = components.config("unet")
    for name, value in {**PLAIN, "addition_embed_type": added}.items():
        # A field that is missing counts as plain: older files have fewer fields.
        if net.get(name, value) != value:
            raise ModelError(f"{name} of the unet is {net[name]!r}; export knows text-to-image networks with {value!r}")
    refuse_unknown_channels(int(net["in_channels"]), int(components.config("vae")["latent_channels"]))
    return net


def text_width(net: Mapping[str, Any]) -> int:
    """Width of the text that the network attends to; some files give it for every level.

    Raises:
        ModelError: Levels attend to texts of several widths.
    """
    widths = net["cross_attention_dim"]
    widths = set(widths) if isinstance(widths, list | tuple) else {widths}
    if len(widths) != 1:
        raise ModelError(f"cross_attention_dim of the unet is {net['cross_attention_dim']!r}; export knows one width")
    return int(widths.pop())


def guidance_fed(net: Mapping[str, Any]) -> Fed:
    """What the graph is told about guidance besides the weights: the scale itself where the UNet takes it, else phi."""
    return GUIDANCE if net.get("time_cond_proj_dim") else RESCALE


class Doubled(nn.Module):
    """diffusers' Upsample2D by two, then the part of it that fits the skip connection, then the convolution.

    Where a side was odd before it was halved, the last row or column is left out. This equals nearest interpolation to
    that size, for which backends round coordinates differently.
    """

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        doubled = F.interpolate(x, scale_factor=2.0, mode="nearest")
        if size is not None:
            doubled = doubled[:, :, : size[0], : size[1]]
        return self.conv(doubled)


class UnetStep(Step):
    """One step of a UNet; a subclass gives it the ports of its family."""

    def __init__(self, unet: nn.Module, controlnet: nn.Module | None = None, beside: Beside = NOTHING) -> None:
        """`beside` says what the step takes besides a latent and text, a ControlNet among it."""
        super().__init__()
        self.unet: Any = unet
        self.controlnet: Any = None if controlnet is None else prepared(controlnet)
        self.told_columns = beside.columns
        self.pictures = tuple(port.name for port, _ in beside.fed)
        for block in self.unet.up_blocks:
            if block.upsamplers is not None:
                block.upsamplers = nn.ModuleList(Doubled(layer.conv) for layer in block.upsamplers)

    def move(
        self,
        state: tuple[Tensor, Tensor, Tensor],
        row: Tensor,
        guidance_weights: Tensor,
        guidance: Tensor,
        text: Tensor,
        added: Tensor | None = None,
        pictures: Sequence[Tensor | None] = (),
    ) -> tuple[Tensor, Tensor]:
        """`Step.advance` with this network.

        Args:
            state: latent, history and noise.
            guidance: As `guidance_fed` says.
            text: (n, tokens, width), branches * batch = n.
            added: (n, width) of what SDXL adds to the timestep, before its embedding.
            pictures: (batch, ...) of what else it sees, in the order of its ports.
        """
        width, branches = self.unet.config.time_cond_proj_dim, guidance_weights.shape[0]
        scale = None
        if width is not None:
            scale = guidance_features(per_picture(guidance, branches), width)
        row, told = split_row(row, self.told_columns)
        seen = pictures_by_name(self.pictures, pictures, branches)

        def predict(x: Tensor, label: Tensor) -> Tensor:
            residuals = None
            if told is not None:
                mode, share = (per_picture(value, branches) for value in (told.mode, told.scale))
                made = self.controlnet(x, label, text, added, seen[CONTROL], mode, branches)
                residuals = scaled(made, share)
            return self.predict(with_mask(x, seen), label, text, added, scale, residuals)

        return self.advance(predict, *state, row, guidance_weights, None if width is not None else guidance)

    def predict(
        self,
        x: Tensor,
        label: Tensor,
        text: Tensor,
        added: Tensor | None,
        scale: Tensor | None,
        residuals: Residuals | None = None,
    ) -> Tensor:
        """The UNet, at sizes that its levels need not divide.

        Args:
            x: (n, C, height, width) float32.
            label: (n,) timestep; for EDM ln(sigma) / 4.
            text: (n, tokens, width of the cross attention).
            added: (n, width) features of SDXL's pooled text and sizes.
            scale: (n, width) features of the guidance scale, for distilled networks.
            residuals: What a ControlNet adds.
        """
        net = self.unet
        dtype = net.conv_in.weight.dtype
        text = text.to(dtype)
        # Sines and cosines are float32; only what comes out of them is rounded.
        features = net.time_proj(label).to(dtype)
        embedding = net.time_embedding(features, None if scale is None else scale.to(dtype))
        if added is not None:
            embedding = embedding + net.add_embedding(added.to(dtype))
        hidden = net.conv_in(x.to(dtype))
        skips: tuple[Tensor, ...] = (hidden,)
        for block in net.down_blocks:
            hidden, left = block(hidden, embedding, **attended(block, text))
            skips += left
        if net.mid_block is not None:
            hidden = net.mid_block(hidden, embedding, **attended(net.mid_block, text))
        if residuals is not None:
            down, middle = residuals
            skips = tuple(skip + more for skip, more in zip(skips, down, strict=True))
            hidden = hidden + middle
        for block in net.up_blocks:
            taken, skips = skips[-len(block.resnets) :], skips[: -len(block.resnets)]
            # The size that the next block's skip connection has; after the last block there is none.
            size = skips[-1].shape[2:] if skips else None
            hidden = block(
                hidden, res_hidden_states_tuple=taken, temb=embedding, upsample_size=size, **attended(block, text)
            )
        return net.conv_out(net.conv_act(net.conv_norm_out(hidden)))


def guidance_features(scale: Tensor, width: int) -> Tensor:
    """(n,) guidance scale -> (n, width) sines and cosines, float32.

    Source: Meng et al. 2023, arXiv:2210.03142 (the scale as an input); the constants are those of latent consistency
    models, Luo et al. 2023, arXiv:2310.04378, as diffusers has them: of (scale - 1) * 1000.
    """
    half = width // 2
    rates = torch.exp(torch.arange(half, dtype=torch.float32) * -(log(10000.0) / (half - 1)))
    angles = ((scale.float() - 1) * 1000).unsqueeze(1) * rates
    return F.pad(torch.cat((angles.sin(), angles.cos()), 1), (0, width % 2))
