"""The model families: what differs between them, as data.

A family is a record here, a module with its graphs in `lssgen.models.nets`, and an oracle test. Numbers that a
checkpoint's own JSON files hold are read from there; records hold what no file says.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any, Literal, cast

from lssgen.errors import ModelError, UnknownModelError
from lssgen.models.configs import PIPELINE
from lssgen.models.costs import (
    Config,
    chroma_cost,
    cogview_cost,
    flux2_cost,
    flux_cost,
    mmdit_cost,
    qwen21_cost,
    qwen_cost,
    unet_cost,
    zimage_cost,
)
from lssgen.models.distilled import distilled_by_configs
from lssgen.models.positions import FLUX_POSITIONS, QWEN_POSITIONS
from lssgen.plan.facts import SPACES, Defaults, ModelFacts, NetworkCost, ScalingSpace

Configs = Mapping[str, Config]
"""JSON of a checkpoint by component: "transformer" or "unet", "vae", "scheduler", "text_encoder", ...; and, where it
matters, model_index.json by the name `lssgen.models.configs.PIPELINE`."""

Guidance = Literal["branches", "embedded", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What is true of every checkpoint of a family and stands in none of its files.

    Attributes:
        name: Key in `FAMILIES`.
        title: Name for people.
        pipelines: diffusers pipeline classes whose model_index.json means this family.
        network: Folder of the denoiser.
        classes: Classes of diffusers and transformers that the family's graphs are made of, by folder.
        components: Folders that a checkpoint must have.
        optional: Folders that it may have and that export uses if present.
        nets: Module with the family's graphs; importing it needs torch.
        latent: (channels, patch) from the denoiser's config: latent channels, and cells along one side of a token.
        cell_px: Pixels along one side of a latent cell, from the VAE's config.
        guidance: Kind of guidance from the denoiser's config and the checkpoint's model_index.json.
        cost: Arithmetic from the denoiser's config and the number of text tokens.
        longest_side: Function from the denoiser's config to `ModelFacts.longest_side`.
        latent_spaces: Keys in `lssgen.models.spaces.SPACES`: latents that published checkpoints of the family paint.
        whole: Parts whose weights are read even where others stand in for them.
        cells: Number of tokens that a stage's sides are multiples of.
        grid, start, oversize, scaling_spaces, shift_by, noise_patch, clamps: See `ModelFacts`.
        scheduler_fixed: Scheduler fields whose value the published pipeline forces.
        history: Estimates that the step graph must carry for every solver that fits: 3 for UniPC of order 3, 4 for
            PNDM, whose memory spans four steps and one evaluation that it forgets. One is as large as the latent.
        max_sequence_length: Tokens of the long text encoder (T5 or a language model); 0: there is none.
        attends_clip: The denoiser attends to CLIP's tokens; else it gets their summary only, or there is no CLIP.
        usual_tokens: Tokens of a usual prompt, for costs, where the long encoder's output is not filled up; else 0.
        unguided_scale: See `ModelFacts`.
        defaults: Values of the published LSSGen pipeline.
        sized_by_config: The default picture size is the denoiser's `sample_size`; else it is that of `defaults`.
    """

    name: str
    title: str
    pipelines: tuple[str, ...]
    network: Literal["transformer", "unet"]
    classes: Mapping[str, tuple[str, ...]]
    components: tuple[str, ...]
    optional: tuple[str, ...] = ()
    nets: str
    latent: Callable[[Config], tuple[int, int]]
    cell_px: Callable[[Config], int]
    guidance: Callable[[Config, Config], Guidance]
    cost: Callable[[Config, int], NetworkCost]
    longest_side: Callable[[Config], int]
    latent_spaces: tuple[str, ...] = ()
    whole: tuple[str, ...] = ()
    grid: Literal["range", "even", "labels"] = "range"
    start: Literal["timestep", "fraction"]
    oversize: Literal["refuse", "floor"] = "refuse"
    shift_by: Literal["tokens", "steps"] = "tokens"
    noise_patch: int = 1
    scaling_spaces: tuple[ScalingSpace, ...] = SPACES
    scheduler_fixed: Mapping[str, object] = field(default_factory=dict[str, object])
    history: int
    max_sequence_length: int = 0
    attends_clip: bool = True
    usual_tokens: int = 0
    unguided_scale: float = 1.0
    cells: int = 1
    clamps: bool = True
    defaults: Defaults
    sized_by_config: bool = False


def _patched(net: Config) -> tuple[int, int]:
    return int(net["in_channels"]), int(net["patch_size"])


def _packed(net: Config) -> tuple[int, int]:
    """FLUX packs 2 x 2 cells into its channels before the network; what inpaints takes more than it gives."""
    return int(net.get("out_channels") or net["in_channels"]) // 4, 2


def _packed_input(net: Config) -> tuple[int, int]:
    """As `_packed`, of what comes in: Qwen-Image's `out_channels` are those of a cell."""
    return int(net["in_channels"]) // 4, 2


def _unpatched(net: Config) -> tuple[int, int]:
    """Networks that inpaint take more channels than they give."""
    return int(net.get("out_channels") or net["in_channels"]), 1


def _halvings(vae: Config) -> int:
    """Autoencoders halve the picture once between any two of their levels; tiny ones may leave their usual four out."""
    levels = vae.get("encoder_block_out_channels") or vae.get("block_out_channels")
    if levels is None and vae.get("_class_name") == "AutoencoderTiny":
        return 8
    return 2 ** (len(levels or vae["block_out_channels"]) - 1)


def _wan_halvings(vae: Config) -> int:
    """The Wan autoencoder halves height and width wherever it may halve time."""
    return 2 ** len(vae["temperal_downsample"])


def _branches(net: Config, index: Config) -> Guidance:
    del net, index
    return "branches"


def _flux_guidance(net: Config, index: Config) -> Guidance:
    del index
    return "embedded" if net.get("guidance_embeds") else "none"


def _flux2_guidance(net: Config, index: Config) -> Guidance:
    """Dev is told the scale; klein's base models have branches, and those distilled for few steps have none."""
    # Another default than FLUX.1's: that of the class.
    if net.get("guidance_embeds", True):
        return "embedded"
    return "none" if index.get("is_distilled") else "branches"


def _unet_guidance(net: Config, index: Config) -> Guidance:
    """Consistency-distilled UNets (LCM) take the scale as an input."""
    del index
    return "embedded" if net.get("time_cond_proj_dim") else "branches"


def _anywhere(net: Config) -> int:
    """Convolutions, and rotary angles computed in the graph, know no longest side."""
    del net
    return 0


def _position_table(net: Config) -> int:
    return int(net["pos_embed_max_size"]) * int(net["patch_size"])


def _zimage_patches(net: Config) -> tuple[int, int]:
    """ZImagePipeline takes squares of two cells, whatever others a network has layers for."""
    return int(net["in_channels"]), 2


def _zimage_positions(net: Config) -> int:
    return 2 * min(int(length) for length in net["axes_lens"][1:])  # a token is 2 x 2 cells


def _flux_positions(net: Config) -> int:
    del net
    return 2 * FLUX_POSITIONS  # a token is 2 x 2 cells, see `_packed`


def _qwen21_positions(net: Config) -> int:
    del net
    return QWEN_POSITIONS


def _qwen_positions(net: Config) -> int:
    del net
    return 2 * QWEN_POSITIONS  # a token is 2 x 2 cells, see `_packed`


_VAES = ("AutoencoderKL", "AutoencoderTiny")
_CLIP = ("CLIPTextModel", "CLIPTextModelWithProjection")
_PROJECTED = ("CLIPTextModelWithProjection",)
_T5 = ("T5EncoderModel",)

_SD = Family(
    name="sd",
    title="Stable Diffusion 1.x and 2.x",
    pipelines=("StableDiffusionPipeline", "LatentConsistencyModelPipeline", "StableDiffusionInpaintPipeline"),
    network="unet",
    classes={"unet": ("UNet2DConditionModel",), "vae": _VAES, "text_encoder": _CLIP},
    components=("unet", "vae", "scheduler", "text_encoder", "tokenizer"),
    nets="lssgen.models.nets.sd",
    latent_spaces=("sd",),
    latent=_unpatched,
    cell_px=_halvings,
    guidance=_unet_guidance,
    cost=unet_cost,
    longest_side=_anywhere,
    start="fraction",
    scheduler_fixed={"steps_offset": 1, "clip_sample": False},
    history=4,
    defaults=Defaults(
        height=512,
        width=512,
        num_inference_steps=50,
        guidance_scale=7.5,
        min_resolution=512,
        base_height=512,
        base_width=512,
    ),
    sized_by_config=True,
)

_SDXL = Family(
    name="sdxl",
    title="Stable Diffusion XL, Playground v2.5",
    pipelines=("StableDiffusionXLPipeline", "StableDiffusionXLInpaintPipeline"),
    network="unet",
    classes={
        "unet": ("UNet2DConditionModel",),
        "vae": _VAES,
        "text_encoder": _CLIP,
        "text_encoder_2": _PROJECTED,
    },
    components=("unet", "vae", "scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"),
    nets="lssgen.models.nets.sdxl",
    latent_spaces=("sdxl",),
    latent=_unpatched,
    cell_px=_halvings,
    guidance=_unet_guidance,
    cost=unet_cost,
    longest_side=_anywhere,
    start="fraction",
    history=4,
    defaults=Defaults(height=1024, width=1024, num_inference_steps=50, guidance_scale=5.0, min_resolution=1024),
    sized_by_config=True,
)

_SD3 = Family(
    name="sd3",
    title="Stable Diffusion 3 and 3.5",
    pipelines=("StableDiffusion3Pipeline",),
    network="transformer",
    classes={
        "transformer": ("SD3Transformer2DModel",),
        "vae": _VAES,
        "text_encoder": _PROJECTED,
        "text_encoder_2": _PROJECTED,
        "text_encoder_3": _T5,
    },
    components=("transformer", "vae", "scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"),
    optional=("text_encoder_3", "tokenizer_3"),
    nets="lssgen.models.nets.sd3",
    latent_spaces=("sd3",),
    latent=_patched,
    cell_px=_halvings,
    guidance=_branches,
    cost=mmdit_cost,
    longest_side=_position_table,
    start="timestep",
    history=3,
    max_sequence_length=256,
    defaults=Defaults(height=1024, width=1024, num_inference_steps=28, guidance_scale=7.0),
    sized_by_config=True,
)

_FLUX = Family(
    name="flux",
    title="FLUX.1",
    pipelines=("FluxPipeline", "FluxFillPipeline", "FluxControlPipeline"),
    network="transformer",
    classes={
        "transformer": ("FluxTransformer2DModel",),
        "vae": _VAES,
        "text_encoder": ("CLIPTextModel",),
        "text_encoder_2": _T5,
    },
    components=("transformer", "vae", "scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"),
    nets="lssgen.models.nets.flux",
    latent_spaces=("flux",),
    latent=_packed,
    cell_px=_halvings,
    guidance=_flux_guidance,
    cost=flux_cost,
    longest_side=_flux_positions,
    grid="even",
    start="timestep",
    oversize="floor",
    history=3,
    max_sequence_length=512,
    attends_clip=False,
    defaults=Defaults(height=1024, width=1024, num_inference_steps=50, guidance_scale=3.5, shorten=True),
)

_FLUX2 = Family(
    name="flux2",
    title="FLUX.2 dev and klein",
    pipelines=("Flux2Pipeline", "Flux2KleinPipeline"),
    network="transformer",
    classes={
        "transformer": ("Flux2Transformer2DModel",),
        "vae": ("AutoencoderKLFlux2", "AutoencoderTiny"),
        "text_encoder": ("Mistral3ForConditionalGeneration", "Qwen3ForCausalLM"),
    },
    components=("transformer", "vae", "scheduler", "text_encoder", "tokenizer"),
    nets="lssgen.models.nets.flux2",
    latent_spaces=("flux2",),
    # Its weights, not its configuration, say how latents are normalised.
    whole=("vae",),
    latent=_packed,
    cell_px=_halvings,
    guidance=_flux2_guidance,
    cost=flux2_cost,
    longest_side=_flux_positions,
    grid="even",
    shift_by="steps",
    noise_patch=2,
    start="timestep",
    oversize="floor",
    history=3,
    max_sequence_length=512,
    attends_clip=False,
    defaults=Defaults(height=1024, width=1024, num_inference_steps=50, guidance_scale=4.0, shorten=True),
)

_COGVIEW4 = Family(
    name="cogview4",
    title="CogView4",
    pipelines=("CogView4Pipeline",),
    network="transformer",
    classes={"transformer": ("CogView4Transformer2DModel",), "vae": _VAES, "text_encoder": ("GlmModel",)},
    components=("transformer", "vae", "scheduler", "text_encoder", "tokenizer"),
    nets="lssgen.models.nets.cogview4",
    latent=_patched,
    cell_px=_halvings,
    guidance=_branches,
    cost=cogview_cost,
    longest_side=_anywhere,
    grid="labels",
    start="timestep",
    history=3,
    max_sequence_length=1024,
    attends_clip=False,
    usual_tokens=128,
    defaults=Defaults(height=1024, width=1024, num_inference_steps=50, guidance_scale=5.0),
    sized_by_config=True,
)

_ZIMAGE = Family(
    name="zimage",
    title="Z-Image and Z-Image-Turbo",
    pipelines=("ZImagePipeline",),
    network="transformer",
    classes={
        "transformer": ("ZImageTransformer2DModel",),
        "vae": _VAES,
        "text_encoder": ("Qwen3Model", "Qwen3ForCausalLM"),
    },
    components=("transformer", "vae", "scheduler", "text_encoder", "tokenizer"),
    nets="lssgen.models.nets.zimage",
    latent_spaces=("flux",),
    latent=_zimage_patches,
    cell_px=_halvings,
    guidance=_branches,
    cost=zimage_cost,
    longest_side=_zimage_positions,
    grid="even",
    start="timestep",
    history=3,
    max_sequence_length=512,
    attends_clip=False,
    usual_tokens=128,
    unguided_scale=0.0,
    defaults=Defaults(height=1024, width=1024, num_inference_steps=50, guidance_scale=5.0),
)

_CHROMA = Family(
    name="chroma",
    title="Chroma",
    pipelines=("ChromaPipeline",),
    network="transformer",
    classes={"transformer": ("ChromaTransformer2DModel",), "vae": _VAES, "text_encoder": _T5},
    components=("transformer", "vae", "scheduler", "text_encoder", "tokenizer"),
    nets="lssgen.models.nets.chroma",
    latent_spaces=("flux",),
    latent=_packed,
    cell_px=_halvings,
    guidance=_branches,
    cost=chroma_cost,
    longest_side=_flux_positions,
    grid="even",
    start="timestep",
    oversize="floor",
    history=3,
    max_sequence_length=512,
    attends_clip=False,
    defaults=Defaults(height=1024, width=1024, num_inference_steps=35, guidance_scale=5.0),
)

_QWEN = Family(
    name="qwen",
    title="Qwen-Image",
    pipelines=("QwenImagePipeline",),
    network="transformer",
    classes={
        "transformer": ("QwenImageTransformer2DModel",),
        "vae": ("AutoencoderKLQwenImage",),
        "text_encoder": ("Qwen2_5_VLForConditionalGeneration",),
    },
    components=("transformer", "vae", "scheduler", "text_encoder", "tokenizer"),
    nets="lssgen.models.nets.qwen",
    latent=_packed_input,
    cell_px=_wan_halvings,
    guidance=_branches,
    cost=qwen_cost,
    longest_side=_qwen_positions,
    grid="even",
    start="timestep",
    oversize="floor",
    history=3,
    max_sequence_length=512,
    attends_clip=False,
    usual_tokens=128,
    clamps=False,
    defaults=Defaults(height=1024, width=1024, num_inference_steps=50, guidance_scale=4.0),
)

_QWEN21 = replace(
    _QWEN,
    name="qwen21",
    title="Qwen-Image 2.1",
    pipelines=("QwenImage21Pipeline",),
    classes={
        "transformer": ("QwenImage21Transformer2DModel",),
        "vae": ("AutoencoderKLQwenImage21",),
        "text_encoder": ("Qwen3VLForConditionalGeneration",),
    },
    components=("transformer", "vae", "scheduler", "text_encoder", "processor"),
    nets="lssgen.models.nets.qwen21",
    latent=_patched,
    cost=qwen21_cost,
    longest_side=_qwen21_positions,
    # The published pipeline rounds down to what two cells take, though a token is one.
    cells=2,
    max_sequence_length=1024,
    defaults=Defaults(height=1024, width=1024, num_inference_steps=40, guidance_scale=1.0),
)

FAMILIES: Mapping[str, Family] = {
    family.name: family for family in (_SD, _SDXL, _SD3, _FLUX, _FLUX2, _COGVIEW4, _ZIMAGE, _CHROMA, _QWEN, _QWEN21)
}
"""Every family, by name."""


def family_of(model_index: Mapping[str, object]) -> Family:
    """The family of a checkpoint, by the pipeline class in its model_index.json.

    Raises:
        UnknownModelError: No record knows the class.
    """
    pipeline = model_index.get("_class_name")
    for family in FAMILIES.values():
        if pipeline in family.pipelines:
            return family
    known = [name for family in FAMILIES.values() for name in family.pipelines]
    near = get_close_matches(str(pipeline), known, 1, 0.7)
    variant = f"; it seems to be a variant of {near[0]}, whose graphs do not fit other inputs" if near else ""
    raise UnknownModelError(
        f"model_index.json names the pipeline {pipeline!r}, which no record knows{variant}; known are "
        f"{', '.join(known)}"
    )


def defaults_from_configs(family: Family, configs: Configs) -> Defaults:
    """Defaults of a checkpoint that has no alias: the family's, at the size that the checkpoint was trained for.

    For a model of small pictures `min_resolution` and the base size come down to that size. One that was distilled for
    few steps gets few, and the guidance that it was distilled with.
    """
    cells = _config(family, configs, family.network).get("sample_size")
    defaults = family.defaults
    # FLUX's config has no size of a picture, and others may give two sides.
    if family.sized_by_config and isinstance(cells, int):
        defaults = at_size(defaults, cells * cell_px(family, configs))
    net, scheduler = _config(family, configs, family.network), configs.get("scheduler", {})
    kind = distilled_by_configs(family.name, net, scheduler, configs.get(PIPELINE, {}))
    return defaults if kind is None else kind.amended(defaults)


def with_levels(defaults: Defaults, model_index: Mapping[str, object]) -> Defaults:
    """Defaults with the noise levels that a model_index.json names as its author's own (Qwen-Image 2.1).

    Raises:
        ModelError: They are not a list of numbers.
    """
    levels = model_index.get("sample_sigmas")
    if levels is None:
        return defaults
    found = cast("list[object]", levels) if isinstance(levels, list) else [None]
    sigmas = tuple(float(level) for level in found if isinstance(level, int | float))
    if len(sigmas) != len(found):
        raise ModelError(f"model_index.json has sample_sigmas {str(levels)[:80]}, which is not a list of numbers")
    return replace(defaults, sigmas=sigmas, num_inference_steps=len(sigmas) or defaults.num_inference_steps)


def at_size(defaults: Defaults, size: int) -> Defaults:
    """Defaults for square pictures of that many pixels a side."""
    return replace(
        defaults,
        height=size,
        width=size,
        min_resolution=min(size, defaults.min_resolution),
        base_height=min(size, defaults.base_height),
        base_width=min(size, defaults.base_width),
    )


def facts_from_configs(
    family: Family, configs: Configs, defaults: Defaults, *, name: str, max_sequence_length: int
) -> ModelFacts:
    """What the plan must know, from a checkpoint's JSON files.

    Args:
        family: The checkpoint's family.
        configs: JSON by component; the denoiser, "vae" and "scheduler" are needed.
        defaults: Of the alias, or from `defaults_from_configs`.
        name: For messages and tables.
        max_sequence_length: Tokens of the long text encoder, 0 where there is none; counts for costs only.

    Raises:
        ModelError: A component or a field is missing.
    """
    net = _config(family, configs, family.network)
    scheduler = _config(family, configs, "scheduler")
    try:
        channels, patch = family.latent(net)
        cost = family.cost(net, text_tokens(family, configs, max_sequence_length))
        longest_side = family.longest_side(net)
        scheduler_class = str(scheduler["_class_name"])
    except KeyError as error:
        raise ModelError(
            f"{name}: field {error} is missing from the {family.network} or scheduler configuration"
        ) from error
    except (TypeError, ValueError, IndexError, ZeroDivisionError) as error:
        # Counting blocks is what meets fields first that contradict each other, such as lists of unequal lengths.
        raise ModelError(
            f"{name}: the {family.network} configuration contradicts itself ({error}); fetch the checkpoint again"
        ) from error
    return ModelFacts(
        name=name,
        channels=channels,
        cell_px=cell_px(family, configs),
        align=patch * family.cells,
        patch=patch,
        grid=family.grid,
        oversize=family.oversize,
        scheduler=scheduler_class,
        # Last, as the published pipeline's constructor overwrites what the file says.
        scheduler_config={**scheduler, **family.scheduler_fixed},
        start=family.start,
        guidance=family.guidance(net, configs.get(PIPELINE, {})),
        scaling_spaces=family.scaling_spaces,
        defaults=defaults,
        shift_by=family.shift_by,
        noise_patch=family.noise_patch,
        cost=cost,
        longest_side=longest_side,
        unguided_scale=family.unguided_scale,
        clamps=family.clamps,
    )


def inpaints(net: Config) -> bool:
    """Whether a denoiser takes a mask and a masked picture beside the latent: more than as many channels again.

    As many again are a control picture's (FLUX.1 Canny and Depth).
    """
    return int(net["in_channels"]) > 2 * int(net.get("out_channels") or net["in_channels"])


def cell_px(family: Family, configs: Configs) -> int:
    """Pixels along one side of a latent cell.

    Raises:
        ModelError: There is no VAE, or its configuration does not say.
    """
    try:
        return family.cell_px(_config(family, configs, "vae"))
    except KeyError as error:
        raise ModelError(f"the checkpoint's VAE configuration is incomplete: {error} is missing") from error


CLIP_TOKENS = 77
"""Length of every CLIP text encoder of the families."""


def text_tokens(family: Family, configs: Configs, max_sequence_length: int) -> int:
    """Tokens that the denoiser attends to."""
    # Published aliases bring no text encoder's JSON: a plan needs nothing else of it.
    clip = int(configs.get("text_encoder", {}).get("max_position_embeddings", CLIP_TOKENS))
    return clip * family.attends_clip + (family.usual_tokens or max_sequence_length)


def _config(family: Family, configs: Configs, component: str) -> Mapping[str, Any]:
    if component not in configs:
        raise ModelError(
            f"the checkpoint has no {component}; a {family.title} checkpoint has {', '.join(family.components)}"
        )
    return configs[component]
