"""The ControlNets of Stable Diffusion 1, 2 and XL: what they add to a UNet's skip connections and its middle."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lssgen.models.nets.control import from_cells

Residuals = tuple[list[Tensor], Tensor]
"""Numbers that are added to every skip connection, from the first on, and to the middle."""


def unet_residuals(
    net: Any, x: Tensor, label: Tensor, text: Tensor, added: Tensor | None, cells: Tensor, mode: Tensor, branches: int
) -> Residuals:
    """A ControlNetModel or ControlNetUnionModel, at sizes that its levels need not divide.

    Args:
        net: The module of diffusers.
        x: (n, C, height, width) float32; n = branches * batch, branches vary slowest.
        label: (n,) timestep.
        text: (n, tokens, width of the cross attention).
        added: (n, width) features of SDXL's pooled text and sizes.
        cells: (n, 3 * cell_px ** 2, height, width) control picture.
        mode: (n, modes) 1 for the kind of the picture; no columns for a ControlNetModel.
        branches: Number of guidance branches.
    """
    dtype = net.conv_in.weight.dtype
    text = text.to(dtype)
    # Sines and cosines are float32; only what comes out of them is rounded.
    embedding = net.time_embedding(net.time_proj(label).to(dtype))
    if mode.shape[1]:
        embedding = embedding + net.control_add_embedding(_angles(net.control_type_proj, mode).to(dtype))
    if added is not None:
        embedding = embedding + net.add_embedding(added.to(dtype))
    hidden = net.conv_in(x.to(dtype))
    picture = from_cells(cells)
    if net.config.controlnet_conditioning_channel_order == "bgr":
        picture = picture.flip(1)
    hint = net.controlnet_cond_embedding(picture.to(dtype))
    if mode.shape[1]:
        hint = hint + _task(net, hint, hidden, mode.to(dtype), branches)
    hidden = hidden + hint
    skips = [hidden]
    for block in net.down_blocks:
        hidden, left = block(hidden, embedding, **attended(block, text))
        skips += left
    if net.mid_block is not None:
        hidden = net.mid_block(hidden, embedding, **attended(net.mid_block, text))
    outs = zip(skips, net.controlnet_down_blocks, strict=True)
    return [out(skip) for skip, out in outs], net.controlnet_mid_block(hidden)


def scaled(residuals: Residuals, scale: Tensor) -> Residuals:
    """Residuals times (n, 1, 1, 1) in their own type."""
    down, middle = residuals
    return [more * scale.to(more.dtype) for more in down], middle * scale.to(middle.dtype)


def attended(block: Any, text: Tensor) -> dict[str, Tensor]:
    """Text for a block that attends to it."""
    return {"encoder_hidden_states": text} if getattr(block, "has_cross_attention", False) else {}


def _angles(projection: Any, told: Tensor) -> Tensor:
    """(n, k) numbers -> (n, k * width) sines and cosines of each."""
    return projection(told.flatten()).unflatten(0, (-1, told.shape[1])).flatten(1)


def _task(net: Any, hint: Tensor, hidden: Tensor, mode: Tensor, branches: int) -> Tensor:
    """(n, C, 1, 1) that a union ControlNet adds to the control picture's features, by its kind.

    The mean of the picture's features, with a learned vector for its kind, and the mean of the latent's go through
    transformer layers. As published these attend along the batch, each of the two to itself in the other pictures and
    branches; here to itself in the branches of its own picture, which for one picture at a time is the same.

    Source: diffusers' ControlNetUnionModel, with one control picture.
    """
    own = hint.mean((2, 3)) + mode @ net.task_embedding
    x = torch.stack((own, hidden.mean((2, 3))), 1)
    for layer in net.transformer_layes:
        x = x + layer.attn(layer.ln_1(x), branches)
        x = x + layer.mlp(layer.ln_2(x))
    return net.spatial_ch_projs(x[:, 0])[:, :, None, None]


class BranchAttention(nn.Module):
    """torch's MultiheadAttention, with its weights by its names, between the guidance branches of every picture.

    torch's own forward would do it along the first axis, where pictures are, too.
    """

    def __init__(self, attn: Any) -> None:
        super().__init__()
        self.in_proj_weight, self.in_proj_bias = attn.in_proj_weight, attn.in_proj_bias
        self.out_proj = attn.out_proj
        self.count = int(attn.num_heads)

    def forward(self, x: Tensor, branches: int) -> Tensor:
        """(n, tokens, width), n = branches * batch: every token attends to itself in its picture's branches."""
        width = x.shape[-1] // self.count
        projected = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        # (branches, batch, tokens, 3 * heads, width of a head) -> (batch, tokens, 3 * heads, branches, width of a head)
        heads = projected.unflatten(-1, (3 * self.count, width)).unflatten(0, (branches, -1)).permute(1, 2, 3, 0, 4)
        query, key, value = (heads[:, :, at * self.count : (at + 1) * self.count] for at in range(3))
        mixed = (query @ key.transpose(-1, -2) / width**0.5).softmax(-1) @ value
        return self.out_proj(mixed.permute(3, 0, 1, 2, 4).flatten(0, 1).flatten(2, 3))


def prepared(net: Any) -> Any:
    """A ControlNet of diffusers that gives what `unet_residuals` says when it is called."""
    for layer in getattr(net, "transformer_layes", ()):
        layer.attn = BranchAttention(layer.attn)
    # Its own forward, so that what it holds itself (a union's vectors) is there while it computes.
    net.forward = partial(unet_residuals, net)
    return net
