"""Arithmetic of the networks, from their config.json alone. A multiplication with an addition counts as two FLOPs.

Matrix products, convolutions and attention are counted, element-wise work is not, as in torch's FlopCounterMode.
Fields that a file lacks take diffusers' defaults.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from lssgen.plan.facts import NetworkCost

Config = Mapping[str, Any]


def mmdit_cost(net: Config, text_tokens: int) -> NetworkCost:
    """SD3Transformer2DModel: text and picture in separate streams that attend to each other.

    Args:
        net: The transformer's config.json.
        text_tokens: Length of the text stream.
    """
    width = net.get("num_attention_heads", 18) * net.get("attention_head_dim", 64)
    blocks, patch, channels = net.get("num_layers", 18), net.get("patch_size", 2), net.get("in_channels", 16)
    dual = len(net.get("dual_attention_layers", ()))
    text, square = text_tokens, width * width
    pooled = net.get("pooled_projection_dim", 2048)
    # 256: width of a timestep's sines and cosines, in all of these networks.
    once = 256 * width + pooled * width + 2 * square + 2 * square  # timestep and pooled text, last modulation
    once += (12 * blocks + 3 * dual - 4) * square  # modulations; the last block's text has two of six
    words = net.get("joint_attention_dim", 4096) * net.get("caption_projection_dim", 1152)
    words += 12 * blocks * square - 9 * square  # the last block reads the text and does not write it
    token = patch**2 * width * (channels + net.get("out_channels", 16)) + (12 * blocks + 4 * dual) * square
    joint = _attention(width) * blocks
    return _cost(
        once=2 * (once + text * words) + joint * text * text,
        token=2 * token + 2 * joint * text,
        pair=joint + _attention(width) * dual,
        cells=patch**2,
    )


def flux_cost(net: Config, text_tokens: int) -> NetworkCost:
    """FluxTransformer2DModel: double blocks as in `mmdit_cost`, then single blocks over the joined sequence.

    Args:
        net: The transformer's config.json.
        text_tokens: Length of the text stream.
    """
    width = net.get("num_attention_heads", 24) * net.get("attention_head_dim", 128)
    double, single = net.get("num_layers", 19), net.get("num_single_layers", 38)
    channels = net.get("in_channels", 64)
    square, text = width * width, text_tokens
    guided = 2 if net.get("guidance_embeds", False) else 1
    once = guided * (256 * width + square) + net.get("pooled_projection_dim", 768) * width + square
    # Modulations: six for each of a double block's streams, three for a single block, two at the end.
    once += (12 * double + 3 * single + 2) * square
    # A single block's, too: 3 for query, key and value, 4 and 5 for feed-forward and the joint way out.
    every = 12 * (double + single) * square
    joint = _attention(width) * (double + single)
    return _cost(
        once=2 * (once + text * (net.get("joint_attention_dim", 4096) * width + every)) + joint * text * text,
        # Published files have out_channels as null, which means as many as come in.
        token=2 * (every + width * (channels + (net.get("out_channels") or channels))) + 2 * joint * text,
        pair=joint,
        cells=4,  # the packing of 2 x 2 cells
    )


def flux2_cost(net: Config, text_tokens: int) -> NetworkCost:
    """Flux2Transformer2DModel: as FLUX.1, with gated feed-forwards, and modulations that all blocks of a kind share.

    Args:
        net: The transformer's config.json.
        text_tokens: Length of the text stream.
    """
    width = net.get("num_attention_heads", 48) * net.get("attention_head_dim", 128)
    double, single = net.get("num_layers", 8), net.get("num_single_layers", 48)
    channels, square, text = net.get("in_channels", 128), width * width, text_tokens
    guided = 2 if net.get("guidance_embeds", True) else 1
    once = guided * (net.get("timestep_guidance_channels", 256) * width + square)
    # Modulations: six for each stream of the double blocks, three for the single ones, two at the end.
    once += (12 + 3 + 2) * square
    # int, as the layers are made. Gated: two ways in and one out, beside query, key, value and the way out.
    feed = int(width * net.get("mlp_ratio", 3.0))
    every = (4 * square + 3 * feed * width) * (double + single)
    joint = _attention(width) * (double + single)
    return _cost(
        once=2 * (once + text * (net.get("joint_attention_dim", 15360) * width + every)) + joint * text * text,
        token=2 * (every + width * (channels + (net.get("out_channels") or channels))) + 2 * joint * text,
        pair=joint,
        cells=4,  # the packing of 2 x 2 cells
    )


def chroma_cost(net: Config, text_tokens: int) -> NetworkCost:
    """ChromaTransformer2DModel: the blocks of `flux_cost`, whose modulations all come from one small network.

    Args:
        net: The transformer's config.json.
        text_tokens: Length of the text stream.
    """
    width = net.get("num_attention_heads", 24) * net.get("attention_head_dim", 128)
    double, single = net.get("num_layers", 19), net.get("num_single_layers", 38)
    channels, hidden = net.get("in_channels", 64), net.get("approximator_hidden_dim", 5120)
    text = text_tokens
    # Of every modulation, in and out of a network whose layers have two products each.
    inside = net.get("approximator_num_channels", 64) * hidden + hidden * width
    inside += 2 * net.get("approximator_layers", 5) * hidden * hidden
    once = (12 * double + 3 * single + 2) * inside
    every = 12 * (double + single) * width * width
    joint = _attention(width) * (double + single)
    return _cost(
        once=2 * (once + text * (net.get("joint_attention_dim", 4096) * width + every)) + joint * text * text,
        token=2 * (every + width * (channels + (net.get("out_channels") or channels))) + 2 * joint * text,
        pair=joint,
        cells=4,  # the packing of 2 x 2 cells
    )


def mmdit_control_cost(net: Config, text_tokens: int) -> NetworkCost:
    """SD3ControlNetModel: blocks of `mmdit_cost`, or of the picture alone, and a product for each.

    Args:
        net: The ControlNet's config.json.
        text_tokens: Length of the text stream.
    """
    width = net.get("num_attention_heads", 18) * net.get("attention_head_dim", 64)
    blocks, patch, channels = net.get("num_layers", 18), net.get("patch_size", 2), net.get("in_channels", 16)
    square = width * width
    if net.get("joint_attention_dim", 4096) is None:
        once = 256 * width + net.get("pooled_projection_dim", 2048) * width + (2 + 6 * blocks) * square
        token = 2 * patch**2 * width * channels + 13 * blocks * square
        return _cost(once=2 * once, token=2 * token, pair=_attention(width) * blocks, cells=patch**2)
    # The latent and the control picture come in, nothing goes out.
    alike = mmdit_cost({**net, "out_channels": channels}, text_tokens)
    # No modulation at the end, and a last block whose text is written and modulated as in the others.
    fixed = 2 * (2 * square + text_tokens * 9 * square)
    return alike + NetworkCost(fixed=fixed, per_cell=2 * blocks * square / patch**2, per_cell_pair=0)


def flux_control_cost(net: Config, text_tokens: int) -> NetworkCost:
    """FluxControlNetModel: blocks of `flux_cost`, and a product for each. Once a picture, also where a negative prompt
    is evaluated besides; counted for every branch all the same.

    Args:
        net: The ControlNet's config.json.
        text_tokens: Length of the text stream.
    """
    width = net.get("num_attention_heads", 24) * net.get("attention_head_dim", 128)
    blocks = net.get("num_layers", 19) + net.get("num_single_layers", 38)
    square = width * width
    # The latent and the control picture come in, nothing goes out; the kind of the picture is a token more, of the
    # width that text is brought to.
    kind = net.get("num_mode") is not None
    alike = flux_cost({**net, "out_channels": net.get("in_channels", 64)}, text_tokens + kind)
    fixed = -4 * square - 2 * kind * net.get("joint_attention_dim", 4096) * width
    return alike + NetworkCost(fixed=fixed, per_cell=2 * blocks * square / 4, per_cell_pair=0)


def cogview_cost(net: Config, text_tokens: int) -> NetworkCost:
    """CogView4Transformer2DModel: one stream of text and picture with shared weights.

    Args:
        net: The transformer's config.json.
        text_tokens: Length of the text part.
    """
    width = net.get("num_attention_heads", 64) * net.get("attention_head_dim", 40)
    blocks, patch, channels = net.get("num_layers", 30), net.get("patch_size", 2), net.get("in_channels", 16)
    square, text = width * width, text_tokens
    time, sizes = net.get("time_embed_dim", 512), 6 * net.get("condition_dim", 256)
    # Modulations come from the narrow embedding of time and sizes, six for each of text and picture.
    once = width * time + time * time + sizes * time + time * time + (12 * blocks + 2) * time * width
    every = 12 * blocks * square
    joint = _attention(width) * blocks
    return _cost(
        once=2 * (once + text * (net.get("text_embed_dim", 4096) * width + every)) + joint * text * text,
        token=2 * (every + patch**2 * width * (channels + net.get("out_channels", 16))) + 2 * joint * text,
        pair=joint,
        cells=patch**2,
    )


def qwen_cost(net: Config, text_tokens: int) -> NetworkCost:
    """QwenImageTransformer2DModel: text and picture in separate streams, as the double blocks of `flux_cost`.

    Args:
        net: The transformer's config.json.
        text_tokens: Length of the text stream.
    """
    width = net.get("num_attention_heads", 24) * net.get("attention_head_dim", 128)
    blocks, patch, channels = net.get("num_layers", 60), net.get("patch_size", 2), net.get("in_channels", 64)
    square, text = width * width, text_tokens
    # Six modulations for each of a block's streams, two at the end.
    once = 256 * width + square + (12 * blocks + 2) * square
    every = 12 * blocks * square
    joint = _attention(width) * blocks
    out = patch**2 * net.get("out_channels", 16)
    # The last block reads the text and does not write it: the graph has no way out and no feed-forward for it there.
    words = net.get("joint_attention_dim", 3584) * width + every - 9 * square
    return _cost(
        once=2 * (once + text * words) + joint * text * text,
        token=2 * (every + width * (channels + out)) + 2 * joint * text,
        pair=joint,
        cells=4,  # the packing of 2 x 2 cells
    )


def qwen21_cost(net: Config, text_tokens: int) -> NetworkCost:
    """QwenImage21Transformer2DModel: one stream; text sees text alone, the picture both.

    Args:
        net: The transformer's config.json.
        text_tokens: Length of the text.
    """
    width = net.get("num_attention_heads", 32) * net.get("attention_head_dim", 128)
    blocks, channels = net.get("num_layers", 32), net.get("in_channels", 64)
    square, text = width * width, text_tokens
    # Once for the step's time and once for text's, which stands still: embedding, and four changes for all blocks.
    once = 2 * (256 * width + square + 4 * square) + square  # the last norm's scale is the picture's alone
    # 4 for attention; a gated feed-forward of three products.
    every = blocks * (4 + 3 * net.get("mlp_ratio", 3)) * square
    joint = _attention(width) * blocks
    words = net.get("context_in_dim", 4096) * width + square + every
    return _cost(
        once=2 * (once + text * words) + joint * text * text,
        token=2 * (every + width * (channels + (net.get("out_channels") or channels))) + joint * text,
        pair=joint,
        cells=1,
    )


def zimage_cost(net: Config, text_tokens: int) -> NetworkCost:
    """ZImageTransformer2DModel: picture and text refined apart, then together; without what fills pictures up.

    Args:
        net: The transformer's config.json.
        text_tokens: Length of the text, filled up to a multiple of 32.
    """
    width, text, patch = net.get("dim", 3840), text_tokens, 2
    refiners, layers, channels = net.get("n_refiner_layers", 2), net.get("n_layers", 30), net.get("in_channels", 16)
    time = min(width, 256)
    # Timestep; then four modulations for every block that the picture passes, and the last layer's one.
    once = 256 * 1024 + 1024 * time + ((refiners + layers) * 4 + 1) * time * width
    # 4 for attention, 3 for the gated feed-forward, whose width is rounded down.
    every = (refiners + layers) * (4 * width + 3 * int(width / 3 * 8)) * width
    apart, joint = _attention(width) * refiners, _attention(width) * layers
    return _cost(
        once=2 * (once + text * (net.get("cap_feat_dim", 2560) * width + every)) + (apart + joint) * text * text,
        token=2 * (every + 2 * patch**2 * width * channels) + 2 * joint * text,
        pair=apart + joint,
        cells=patch**2,
    )


def unet_cost(net: Config, text_tokens: int) -> NetworkCost:
    """UNet2DConditionModel of SD 1.x, 2.x and SDXL.

    Args:
        net: The UNet's config.json.
        text_tokens: Length of the text that every transformer reads.
    """
    sum_, skips = _way_down(net, text_tokens)
    widths: Sequence[int] = net.get("block_out_channels", _WIDTHS)
    levels = len(widths)
    layers = _per_level(net.get("layers_per_block", 2), levels)
    # Where nothing else is said, the way up is the way down; its blocks have a layer more.
    backwards = (
        net.get("reverse_transformer_layers_per_block")
        or _per_level(net.get("transformer_layers_per_block", 1), levels)[::-1]
    )
    depths_up = _depths(backwards, [count + 1 for count in reversed(layers)])
    read = _per_level(net.get("cross_attention_dim", 1280), levels)
    up = ["CrossAttn" in kind for kind in net.get("up_block_types", _UP)]
    width = widths[-1]
    for step, level in enumerate(reversed(range(levels))):
        for depth in depths_up[step]:
            sum_.resnet(width + skips.pop()[0], widths[level], level)
            width = widths[level]
            if up[step]:
                sum_.transformer(width, depth, level, read[level])
        if level:
            sum_.convolution(width, width, level - 1)
    sum_.convolution(widths[0], net.get("out_channels", 4), 0)
    return sum_.cost


def unet_control_cost(net: Config, text_tokens: int) -> NetworkCost:
    """ControlNetModel and ControlNetUnionModel of SD and SDXL: the way down and the middle of a UNet, a convolution of
    one tap for each skip connection, and a stack of convolutions that brings the control picture to the latent's size.

    Args:
        net: The ControlNet's config.json.
        text_tokens: Length of the text that every transformer reads.
    """
    sum_, skips = _way_down(net, text_tokens)
    for width, level in (*skips, skips[-1]):  # the middle has the size of the last
        sum_.convolution(width, width, level, taps=1)
    hint = net.get("conditioning_embedding_out_channels", (16, 32, 96, 256))
    halvings = len(hint) - 1
    sum_.convolution(net.get("conditioning_channels", 3), hint[0], -halvings)
    for step in range(halvings):
        sum_.convolution(hint[step], hint[step], step - halvings)
        sum_.convolution(hint[step], hint[step + 1], step + 1 - halvings)
    sum_.convolution(hint[-1], skips[0][0], 0)
    if "num_control_type" in net:
        sum_.once += _task(net, 4 * skips[0][0])
    return sum_.cost


def _task(net: Config, time: int) -> int:
    """Multiplications of what a union ControlNet does with the kind of its picture, per picture."""
    told, width = net["addition_time_embed_dim"] * net["num_control_type"], net["num_trans_channel"]
    # Two tokens, the control picture's and the latent's, through layers of 12 squares. They do not attend to each other
    # but to the same token of the other guidance branches, so that how many pairs there are depends on these; one here.
    layers = net["num_trans_layer"] * 2 * (12 * width * width + 2 * width)
    return told * time + time * time + layers + width * net["num_proj_channel"]


_WIDTHS = (320, 640, 1280, 1280)


def _way_down(net: Config, text_tokens: int) -> tuple["_Unet", list[tuple[int, int]]]:
    """A UNet up to its middle; and width and level of every skip connection."""
    widths: Sequence[int] = net.get("block_out_channels", _WIDTHS)
    levels = len(widths)
    layers = _per_level(net.get("layers_per_block", 2), levels)
    depths = _depths(net.get("transformer_layers_per_block", 1), layers)
    middle = depths[-1][0] if depths[-1] else 0
    read = _per_level(net.get("cross_attention_dim", 1280), levels)
    down = ["CrossAttn" in kind for kind in net.get("down_block_types", _DOWN)]
    first, last = widths[0], widths[-1]
    time = 4 * first
    sum_ = _Unet(time, text_tokens)
    sum_.once += first * time + time * time + (net.get("time_cond_proj_dim") or 0) * first
    if net.get("addition_embed_type") == "text_time":
        sum_.once += net["projection_class_embeddings_input_dim"] * time + time * time
    sum_.convolution(net.get("in_channels", 4), first, 0)
    skips = [(first, 0)]
    width = first
    for level in range(levels):
        for depth in depths[level]:
            sum_.resnet(width, widths[level], level)
            width = widths[level]
            skips.append((width, level))
            if down[level]:
                sum_.transformer(width, depth, level, read[level])
        if level < levels - 1:
            sum_.convolution(width, width, level + 1)
            skips.append((width, level + 1))
    if net.get("mid_block_type", _MID) is not None:
        sum_.resnet(last, last, levels - 1)
    if net.get("mid_block_type", _MID) == _MID:
        sum_.transformer(last, middle, levels - 1, read[-1])
        sum_.resnet(last, last, levels - 1)
    return sum_, skips


_DOWN = (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D")
_MID = "UNetMidBlock2DCrossAttn"
_UP = ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3)


class _Unet:
    """Multiplications so far: per picture, per full-size cell, per pair of full-size cells."""

    def __init__(self, time: int, text: int) -> None:
        self.once = self.cell = self.pair = 0.0
        self._time, self._text = time, text

    @property
    def cost(self) -> NetworkCost:
        return NetworkCost(fixed=2 * self.once, per_cell=2 * self.cell, per_cell_pair=2 * self.pair)

    def convolution(self, of: int, to: int, level: int, taps: int = 9) -> None:
        self.cell += taps * of * to / 4**level

    def resnet(self, of: int, to: int, level: int) -> None:
        self.convolution(of, to, level)
        self.convolution(to, to, level)
        # The way around has a convolution, of one tap, only where it changes the width.
        self.convolution(of, to, level, taps=int(of != to))
        self.once += self._time * to

    def transformer(self, width: int, depth: int, level: int, text_width: int) -> None:
        square = width * width
        # In and out, then by layer: 4 for self-attention, 2 for attention to the text, 12 for the gated feed-forward.
        self.cell += (2 * square + depth * (18 * square + 2 * self._text * width)) / 4**level
        self.once += depth * 2 * text_width * width * self._text
        # A level has a quarter of the cells of the one above, and so a sixteenth of the pairs.
        self.pair += depth * 2 * width / 16**level


def _attention(width: int) -> int:
    """FLOPs of attention for one pair of tokens: scores and their sum over the values."""
    return 4 * width


def _cost(*, once: float, token: float, pair: float, cells: int) -> NetworkCost:
    """From costs per token to costs per latent cell."""
    return NetworkCost(fixed=once, per_cell=token / cells, per_cell_pair=pair / cells**2)


def _per_level(value: Any, levels: int) -> Sequence[Any]:
    """One value for every level, where a file gives one for all."""
    return (value,) * levels if isinstance(value, int) else value


def _depths(value: Any, layers: Sequence[int]) -> list[Sequence[int]]:
    """Transformer layers behind every residual layer, by level; files give one number for all, a level or a layer."""
    return [
        _per_level(depth, count)[:count] for depth, count in zip(_per_level(value, len(layers)), layers, strict=True)
    ]
