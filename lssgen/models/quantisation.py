"""Which products of a family's step may be computed in few bits, as data."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from lssgen.errors import UnknownModelError


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """What a family's step keeps in high precision; everything that is not named here is kept.

    Attributes:
        block: Expression that finds the name of a block at the beginning of a weight's name.
        products: Expression for what follows the block's name in weights that may be quantised.
        ends: Number of blocks at the beginning and at the end of the network that stay as they are; in a network of few
            blocks at most an eighth of them at either end.
    """

    block: re.Pattern[str]
    products: re.Pattern[str]
    ends: int = 2

    def ends_of(self, blocks: int) -> int:
        """How many blocks stay as they are at either end of a network with so many."""
        return min(self.ends, blocks // 8)


_MMDIT = Sensitivity(
    block=re.compile(r"transformer\.transformer_blocks\.\d+"),
    products=re.compile(
        r"\.(attn2?\.(to_[qkv]|add_[qkv]_proj|to_out\.0|to_add_out)|ff(_context)?\.net\.\d(\.proj)?)\."
    ),
)

_FLUX = Sensitivity(
    block=re.compile(r"transformer\.(single_)?transformer_blocks\.\d+"),
    products=re.compile(
        r"\.(attn\.(to_[qkv]|add_[qkv]_proj|to_out\.0|to_add_out)|ff(_context)?\.net\.\d(\.proj)?|proj_mlp|proj_out)\."
    ),
)

# In single blocks one product makes query, key, value and both ways into the feed-forward, another ends both.
_FLUX2 = Sensitivity(
    block=re.compile(r"transformer\.(single_)?transformer_blocks\.\d+"),
    products=re.compile(
        r"\.(attn\.(to_[qkv]|add_[qkv]_proj|to_out(\.0)?|to_add_out|to_qkv_mlp_proj)|ff(_context)?\.linear_(in|out))\."
    ),
)

_COGVIEW = Sensitivity(
    block=re.compile(r"transformer\.transformer_blocks\.\d+"),
    products=re.compile(r"\.(attn1\.(to_[qkv]|to_out\.0)|ff\.net\.\d(\.proj)?)\."),
)

_ZIMAGE = Sensitivity(
    block=re.compile(r"transformer\.(layers|noise_refiner|context_refiner)\.\d+"),
    products=re.compile(r"\.(attention\.(to_[qkv]|to_out\.0)|feed_forward\.w[123])\."),
)

_QWEN = Sensitivity(
    block=re.compile(r"transformer\.transformer_blocks\.\d+"),
    products=re.compile(r"\.(attn\.(to_[qkv]|add_[qkv]_proj|to_out\.0|to_add_out)|(img|txt)_mlp\.net\.\d(\.proj)?)\."),
)

_QWEN21 = Sensitivity(
    block=re.compile(r"transformer\.transformer_blocks\.\d+"),
    products=re.compile(r"\.(attn\.(to_[qkv]|to_out\.0)|img_mlp\.(proj|gate_layer|out))\."),
)

_UNET = Sensitivity(
    block=re.compile(
        r"unet\.(down_blocks\.\d+|mid_block|up_blocks\.\d+)\."
        r"(attentions\.\d+\.transformer_blocks|resnets|downsamplers|upsamplers)\.\d+"
    ),
    products=re.compile(r"\.(attn[12]\.(to_[qkv]|to_out\.0)|ff\.net\.\d(\.proj)?|conv[12]?)\."),
)

TEXT = Sensitivity(
    block=re.compile(r"text_encoder(_\d)?\.((text_model\.)?encoder\.(layers|block)|(model\.)?layers)\.\d+"),
    products=re.compile(
        r"\.(self_attn\.(\w_proj|out_proj)|mlp\.(fc\d|\w+_proj)|layer\.\d\.(SelfAttention\.\w|DenseReluDense\.\w+))\."
    ),
    ends=0,
)
"""Products of text encoders, CLIP, T5 and language models, of which only the weights are put into few bits."""

SENSITIVITIES: Mapping[str, Sensitivity] = {
    "sd": _UNET,
    "sdxl": _UNET,
    "sd3": _MMDIT,
    "flux": _FLUX,
    "flux2": _FLUX2,
    "cogview4": _COGVIEW,
    "zimage": _ZIMAGE,
    "qwen": _QWEN,
    "qwen21": _QWEN21,
    "chroma": _FLUX,
}
"""Products that may be quantised, by family. Embedders of patches, text, time, guidance and pooled text, modulation,
norms and the last projection are in none, nor are a UNet's first and last convolution, those of its shortcuts, and the
projections around its transformers. Source: what ModelOpt 0.47 and deepcompressor leave out."""


def sensitivity_of(family: str) -> Sensitivity:
    """The record of a family.

    Raises:
        UnknownModelError: There is none.
    """
    if family not in SENSITIVITIES:
        raise UnknownModelError(
            f"there is no record of what may be quantised in the family {family!r}; there are "
            f"{', '.join(SENSITIVITIES)}: add one to lssgen/models/quantisation.py"
        )
    return SENSITIVITIES[family]
