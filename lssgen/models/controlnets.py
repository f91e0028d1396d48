"""ControlNets: which classes there are, what they fit, and what they cost, as data.

Source: the classes of diffusers in `diffusers.models.controlnets`, and the pipelines that take them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lssgen.errors import ModelError
from lssgen.models.costs import Config, flux_control_cost, mmdit_control_cost, unet_control_cost
from lssgen.plan.facts import Control, ModelFacts, NetworkCost

PART = "controlnet"
"""Name of a ControlNet among the parts of a checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlKind:
    """A class of ControlNets.

    Attributes:
        families: Names of the families whose networks it steers.
        alike: Fields of its config.json that must be those of the network's.
        only: Fields, and the values at which the graphs compute what diffusers does.
        modes: Number of kinds of picture that it is told apart by, from its config.json; 0: it is told none.
        cost: Arithmetic from its config.json and the number of text tokens.
        halves: Fields that list the widths between which the control picture is halved; None: it reads latents.
    """

    families: tuple[str, ...]
    alike: tuple[str, ...]
    only: Mapping[str, tuple[object, ...]] = field(default_factory=dict[str, tuple[object, ...]])
    modes: Callable[[Config], int]
    cost: Callable[[Config, int], NetworkCost]
    halves: str | None = None


def _one(config: Config) -> int:
    del config
    return 0


_UNET = ("block_out_channels", "layers_per_block", "cross_attention_dim", "addition_embed_type", "norm_num_groups")
_UNET_ONLY: Mapping[str, tuple[object, ...]] = {
    "class_embed_type": (None,),
    "num_class_embeds": (None,),
    "encoder_hid_dim_type": (None,),
    "conditioning_channels": (3,),
    "global_pool_conditions": (False,),  # these work by guess mode, in which the negative branch has no control
    "controlnet_conditioning_channel_order": ("rgb", "bgr"),
}

KINDS: Mapping[str, ControlKind] = {
    "ControlNetModel": ControlKind(
        families=("sd", "sdxl"),
        alike=_UNET,
        only=_UNET_ONLY,
        modes=_one,
        cost=unet_control_cost,
        halves="conditioning_embedding_out_channels",
    ),
    "ControlNetUnionModel": ControlKind(
        families=("sdxl",),
        alike=_UNET,
        only={**_UNET_ONLY, "controlnet_conditioning_channel_order": ("rgb",)},
        modes=lambda config: int(config["num_control_type"]),
        cost=unet_control_cost,
        halves="conditioning_embedding_out_channels",
    ),
    "SD3ControlNetModel": ControlKind(
        families=("sd3",),
        alike=("attention_head_dim", "num_attention_heads", "pooled_projection_dim", "patch_size"),
        only={"extra_conditioning_channels": (0,)},  # those for inpainting take a mask as well
        modes=_one,
        cost=mmdit_control_cost,
    ),
    "FluxControlNetModel": ControlKind(
        families=("flux",),
        alike=(
            "attention_head_dim",
            "num_attention_heads",
            "joint_attention_dim",
            "pooled_projection_dim",
            "axes_dims_rope",
        ),
        only={"conditioning_embedding_channels": (None,)},  # the others read pixels, of the size of a latent
        modes=lambda config: int(config.get("num_mode") or 0),
        cost=flux_control_cost,
    ),
}
"""Every class, by its name in diffusers."""


def classes_for(family: str) -> tuple[str, ...]:
    """Classes of ControlNets for a family; empty: there are none."""
    return tuple(name for name, kind in KINDS.items() if family in kind.families)


def see_fit(config: Config, network: Config, *, family: str, channels: int, cell_px: int, said: str) -> None:
    """See that a ControlNet was made for a network.

    Args:
        config, network: The config.json of each, with every default; the ControlNet's names its class.
        family: Name of the network's family.
        channels: Number of channels of a latent.
        cell_px: Pixels along a latent cell.
        said: Name of the ControlNet for messages.

    Raises:
        ModelError: Says what does not fit.
    """
    name = str(config.get("_class_name"))
    fitting = classes_for(family)
    if name not in fitting:
        these = f"takes a {' or a '.join(fitting)}" if fitting else "has no ControlNets here"
        raise ModelError(f"{said} is a {name}; a {family} checkpoint {these}: choose a ControlNet made for it")
    kind = KINDS[name]
    for one, values in kind.only.items():
        if config.get(one, values[0]) not in values:
            raise ModelError(f"{one} of {said} is {config[one]!r}; export knows {' and '.join(map(repr, values))}")
    wanted = {one: _plain(network.get(one)) for one in kind.alike} | {"in_channels": kind_channels(name, channels)}
    for one, value in wanted.items():
        if _plain(config.get(one)) != value:
            raise ModelError(
                f"{one} of {said} is {_plain(config.get(one))}, of the network {value}: it was made for another model; "
                "choose a ControlNet of this one"
            )
    if kind.halves is not None and (cell := 2 ** (len(config[kind.halves]) - 1)) != cell_px:
        raise ModelError(f"{said} makes one cell of {cell} x {cell} px, the VAE of the checkpoint of {cell_px} px")


def kind_channels(name: str, channels: int) -> int:
    """Channels that a ControlNet of a class takes, for latents of so many: FLUX packs 2 x 2 cells."""
    return 4 * channels if "flux" in KINDS[name].families else channels


def controlled(facts: ModelFacts, config: Config, text_tokens: int) -> ModelFacts:
    """A model with a ControlNet beside it.

    Args:
        facts: The model.
        config: The ControlNet's config.json, with every default.
        text_tokens: Tokens that it attends to.
    """
    kind = KINDS[str(config["_class_name"])]
    control = Control(modes=kind.modes(config))
    return replace(facts, control=control, cost=facts.cost + kind.cost(config, text_tokens))


def _plain(value: Any) -> Any:
    """A value as it can be compared: JSON has lists where Python has tuples."""
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value
