"""Checkpoints that were distilled for few steps: how each kind is known, and what it wants, as data."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lssgen.plan.facts import Defaults

SET = object()
"""Stands for any value of a field but none, false and zero."""

_TRAILING: Mapping[str, object] = {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "trailing"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Distilled:
    """One kind.

    Attributes:
        title: Name for people.
        families: Keys in `FAMILIES`.
        steps: Steps that it was distilled for; 0: the number in its name.
        guidance_scale: Scale that it was distilled with; 1 or less is none.
        start_sigma: Start of later stages that leaves them about half of the steps; 0: that of the family's defaults.
        net, scheduler, index: Values of fields of the denoiser's and the scheduler's configuration and of
            model_index.json that only this kind has together: each any of several. None stands for a field that is not
            there.
        name: Pattern of a file's name, for files that have no configuration of their own; empty: it is not known so.
        sampling: Fields of the scheduler's configuration that such a file wants, whatever its base has.
    """

    title: str
    families: tuple[str, ...]
    steps: int
    guidance_scale: float
    start_sigma: float = 0.0
    net: Mapping[str, tuple[object, ...]] = field(default_factory=dict[str, tuple[object, ...]])
    scheduler: Mapping[str, tuple[object, ...]] = field(default_factory=dict[str, tuple[object, ...]])
    index: Mapping[str, tuple[object, ...]] = field(default_factory=dict[str, tuple[object, ...]])
    name: str = ""
    sampling: Mapping[str, object] = field(default_factory=dict[str, object])

    def amended(self, defaults: Defaults) -> Defaults:
        """Defaults of a run of such a checkpoint."""
        start = self.start_sigma or defaults.start_sigma
        return replace(defaults, num_inference_steps=self.steps, guidance_scale=self.guidance_scale, start_sigma=start)


_UNETS = ("sd", "sdxl")
# Networks that predict velocity, or a noise schedule that ends in nothing but noise, have trailing timesteps too.
_TURBO: Mapping[str, tuple[object, ...]] = {
    "timestep_spacing": ("trailing",),
    # None: a file that says nothing has the class's default, which is that.
    "prediction_type": ("epsilon", None),
    "rescale_betas_zero_snr": (False, None),
}

_KINDS = (
    Distilled(
        title="a consistency model that is told the guidance scale",
        families=_UNETS,
        steps=4,
        guidance_scale=8.0,
        net={"time_cond_proj_dim": (SET,)},
    ),
    Distilled(
        title="a consistency model",
        families=_UNETS,
        steps=4,
        guidance_scale=1.0,
        scheduler={"_class_name": ("LCMScheduler",)},
        name=r"(^|[-_. ])lcm($|[-_. ])",
        sampling={"_class_name": "LCMScheduler"},
    ),
    Distilled(
        title="a trajectory consistency model",
        families=_UNETS,
        steps=4,
        guidance_scale=0.0,
        scheduler={"_class_name": ("TCDScheduler",)},
    ),
    Distilled(
        title="SDXL Turbo",
        families=("sdxl",),
        steps=4,
        guidance_scale=0.0,
        net={"sample_size": (64,)},
        scheduler=_TURBO,
        name=r"^sd_?xl_turbo",
        sampling={**_TRAILING, "_class_name": "EulerAncestralDiscreteScheduler"},
    ),
    Distilled(
        title="SD Turbo",
        families=("sd",),
        steps=4,
        guidance_scale=0.0,
        net={"sample_size": (64,), "cross_attention_dim": (1024,)},
        scheduler=_TURBO,
        name=r"^sd_turbo",
        sampling=_TRAILING,
    ),
    Distilled(
        title="SDXL Lightning or Hyper-SD",
        families=_UNETS,
        steps=0,
        guidance_scale=0.0,
        # "8step" and "8-steps", but not the last digits of "1024", nor a word that begins with step.
        name=r"(lightning|hyper).*?(?<!\d)(?P<steps>\d{1,2})[-_ ]?steps?(?![a-z])",
        sampling=_TRAILING,
    ),
    Distilled(
        title="Stable Diffusion 3.5 Large Turbo",
        families=("sd3",),
        steps=4,
        guidance_scale=0.0,
        name=r"sd3\.?5[-_]large[-_]turbo",
    ),
    Distilled(
        title="Z-Image-Turbo",
        families=("zimage",),
        # Its model card says 9, of which an older diffusers evaluated 8 at these very levels.
        steps=8,
        guidance_scale=0.0,
        # That of the base model is larger.
        scheduler={"shift": (3.0,), "use_dynamic_shifting": (False, None)},
    ),
    Distilled(
        title="FLUX.1 [schnell]",
        families=("flux",),
        steps=4,
        guidance_scale=0.0,
        net={"guidance_embeds": (False,)},
        scheduler={"shift": (1.0,), "use_dynamic_shifting": (False, None)},
    ),
    Distilled(
        title="FLUX.2 [klein]",
        families=("flux2",),
        steps=4,
        guidance_scale=1.0,
        # Its shift of few steps is large: 0.75 would leave one of four.
        start_sigma=0.9,
        index={"is_distilled": (True,)},
    ),
)


def distilled_by_configs(
    family: str, net: Mapping[str, Any], scheduler: Mapping[str, Any], index: Mapping[str, Any]
) -> Distilled | None:
    """The kind that a checkpoint's configurations speak for; None where nothing does.

    Args:
        family: Key in `FAMILIES`.
        net: Configuration of the denoiser.
        scheduler: Configuration of the scheduler.
        index: The checkpoint's model_index.json; empty: there is none.
    """
    # The first that fits: LCM-SDXL has the mark of the second kind too, and wants other guidance.
    for kind in _KINDS:
        known = kind.net or kind.scheduler or kind.index
        has = _has(net, kind.net) and _has(scheduler, kind.scheduler) and _has(index, kind.index)
        if known and family in kind.families and has:
            return kind
    return None


def distilled_by_name(family: str, name: str) -> Distilled | None:
    """The kind that the name of a file speaks for; None where it does not."""
    for kind in _KINDS:
        found = re.search(kind.name, name, re.IGNORECASE) if kind.name and family in kind.families else None
        steps = kind.steps or (int(found["steps"]) if found else 0)
        if found and steps:
            return replace(kind, steps=steps)
    return None


def _has(config: Mapping[str, Any], wanted: Mapping[str, tuple[object, ...]]) -> bool:
    return all(
        bool(config.get(name)) if values == (SET,) else config.get(name) in values for name, values in wanted.items()
    )
