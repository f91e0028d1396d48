"""Everything a user may choose about a run, resolved: no value here is decided elsewhere."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from numbers import Real
from typing import Any, Literal, cast, get_args

from lssgen.choices import choice, refuse_outside
from lssgen.errors import PlanError
from lssgen.plan.caching import MASKS, NO_CACHE
from lssgen.plan.facts import Defaults, ScalingSpace
from lssgen.plan.sampling import OWN_SOLVER
from lssgen.plan.scheduler_choice import SchedulerChoice, SigmaSchedule, TimestepSpacing
from lssgen.plan.transitions import TRANSITIONS, HandOff

SkipWindow = Literal["published", "stage", "first"]
StartRule = Literal["published", "sigma"]
Injection = Literal["label", "sigma"]
PndmStart = Literal["published", "aligned"]
AUTO = "auto"
"""Word for a noise level that is worked out: `PlanOptions.hand_off`, and `start_sigma` before it is resolved."""

MOST_STEPS = 10_000
"""A plan has a row for every step, and no model knows more than 1000 levels."""

MOST_SIDE_PX = 65_536
"""Pixels along a side. No model paints a sixteenth of it, and no common format of pictures takes more."""

MOST_PIXELS = 2**28
"""Pixels of a picture, those of 16384 x 16384."""

MOST_GUIDANCE = 10_000
"""Strength of guidance; ten or so is strong. Far beyond it, numbers leave what the networks compute in."""

LEAST_SIGMA = 1e-6
"""Smallest noise level of one's own: a float32 picture cannot tell less from none."""


_PICTURE, _STAGES, _SOLVER = "what to paint", "stages", "solver"
_CONTROL = "control picture"
_SKIPPING, _REPAIRS = "skip-layer guidance", "repairs of published behaviour"
_MODEL = "the model's own"
_SIDE: dict[str, Any] = {"least": 1, "most": MOST_SIDE_PX}
_SHARE: dict[str, Any] = {"least": 0, "most": 1}
_STRENGTH: dict[str, Any] = {"least": -MOST_GUIDANCE, "most": MOST_GUIDANCE}


@dataclass(frozen=True, slots=True, kw_only=True)
class SkipLayerGuidance:
    """A third guidance branch, the positive prompt with some layers left out, during part of the run.

    Attributes:
        scale: Weight of (positive - skip).
        start, stop: The window, as shares of the steps; both ends excluded.
        window: Range that the shares refer to. "published": the stage's own step index against the requested number of
            steps, so that the window opens anew in every stage. "stage": the step index against the length of the
            stage's schedule. "first": as published, in the first stage only.
    """

    scale: float = choice(
        2.8,
        name="--skip-scale",
        metavar="G",
        help="weight of (positive - skip)",
        group=_SKIPPING,
        **_STRENGTH,
    )
    start: float = choice(
        0.01,
        name="--skip-start",
        metavar="SHARE",
        help="where it begins, as a share of the steps",
        group=_SKIPPING,
        **_SHARE,
    )
    stop: float = choice(
        0.2,
        name="--skip-stop",
        metavar="SHARE",
        help="where it ends, as a share of the steps",
        group=_SKIPPING,
        **_SHARE,
    )
    window: SkipWindow = choice(
        "published",
        name="--skip-window",
        help="what the shares refer to: published (anew in every stage, of all steps), stage (of the stage's own "
        "schedule) or first (as published, first stage only)",
        group=_SKIPPING,
    )

    def __post_init__(self) -> None:
        refuse_outside(self, PlanError)
        if not 0 <= self.start < self.stop <= 1:
            raise PlanError(
                f"skip-layer guidance needs 0 <= start < stop <= 1; got start {self.start}, stop {self.stop}"
            )
        _one_of("the skip-layer window", self.window, get_args(SkipWindow))


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """What to plan. `from_defaults` fills in what the user leaves open.

    The last block holds behaviours of the published LSSGen code that can be repaired; the published one is the default.

    Attributes:
        height, width: Picture size in pixels.
        num_inference_steps: Length of the full-resolution schedule.
        guidance_scale: `ModelFacts.unguided_scale` or less turns guidance off: 1, for Z-Image 0.
        start_sigma: Start of later stages, in (0, 1]; see `start_rule`. 1 asks for a single stage.
        min_resolution: Shortest side in pixels that a first stage may have.
        shorten: Give stages smaller than the base size fewer steps.
        base_height, base_width: Size in pixels at which a stage gets all steps.
        stage_steps: Length of every stage's full schedule, smallest first, in place of what `num_inference_steps` and
            `shorten` give; empty: what they give.
        scaling_space: Way of a latent to the next size.
        hand_off: Noise share, noise / (image + noise) for data of unit size, at which every stage but the last is left,
            in [0, 1). "auto": the highest of which the next stage's noise covers all that is left out. "own": the
            transition's: 0, the published behaviour, for those that take over a clean latent, "auto" for those that
            keep the noisy state.
        strength: Distance that a run goes away from the picture it starts from, in (0, 1]: where its first stage
            starts, in the terms of `start_sigma`. Up to `start_sigma` the picture enters at the last stage, above it
            at the first. 1 starts from pure noise.
        true_cfg_scale: Strength of classifier-free guidance with a negative prompt, above 1, for models whose
            `guidance_scale` goes into the network or that have none.
        cfg_truncation: Share of the way from noise to the picture, 1 - sigma, beyond which steps of flow models go
            without guidance, in [0, 1]; 1: none does. What Z-Image's pipeline calls so.
        scheduler: A scheduler in the place of the checkpoint's: a diffusers scheduler's folder or file, or a name.
            None: the checkpoint's.
        solver: A name out of `solver_names`, or "own" for the scheduler's.
        timestep_spacing: Rule by which the timesteps of diffusion models are picked; "own" for the scheduler's.
        sigma_schedule: Spacing of sigmas; "own" for the scheduler's, "default" for that of the timesteps.
        eta: Share of fresh noise in every DDIM step, in [0, 1].
        skip_layers: Skip-layer guidance; None turns it off.
        controlnet_conditioning_scale: Strength of a control picture: factor on what its ControlNet adds to the network.
            0 turns it off.
        control_guidance_start, control_guidance_end: Part of the schedule in which the control picture acts, as shares
            of the steps. In every stage it is the same part of that stage's full schedule, so that a noise level which
            two stages have in common is steered in both or in neither.
        control_mode: Kind of the control picture, counted from 0 as the network's authors do, for union networks.
        cached_steps: Steps whose estimate is extrapolated and not evaluated: "off", a name out of
            `lssgen.plan.caching.MASKS`, or a word of f (evaluated) and c (cached) for every stage, with commas between.
        cache_order: Order of that extrapolation: 1 for the line through the last two estimates, 0 for the last one.
        sigmas: Own noise levels for flow models, falling, in (0, 1], before the schedule's shift; their number
            replaces `num_inference_steps`. A stage with fewer steps takes as many levels, evenly spaced along the list.
        start_rule: "published": a threshold on the timestep for flow, a share of the steps for diffusion models.
            "sigma": the smallest level whose noise share noise / (image + noise), for data of unit size, is at least
            `start_sigma`, in every model; the stage is then noised to that level, whatever `injection` says.
        injection: Noise level a later stage is mixed at: its first timestep's "label" over 1000, or the "sigma" that
            the solver works with. They differ for CogView4 only.
        token_clamp: Treat pictures with more tokens than the schedule knows as if they had only so many
            (`max_image_seq_len`). diffusers does not, LSSGen does.
        pndm: Place where a later stage cuts PNDM's list of timesteps: as "published", which leaves the sample one step
            noisier than its label from the third evaluation on, or "aligned", with the second timestep repeated.

    Raises:
        PlanError: A value outside its range.
    """

    height: int = choice(help="picture height in pixels", metavar="PX", **_SIDE, group=_PICTURE, unset=_MODEL)
    width: int = choice(help="picture width in pixels", metavar="PX", **_SIDE, group=_PICTURE, unset=_MODEL)
    num_inference_steps: int = choice(
        name="--steps",
        aliases=("--num-inference-steps",),
        help="steps of the full schedule",
        metavar="N",
        least=1,
        most=MOST_STEPS,
        group=_PICTURE,
        unset=_MODEL,
    )
    guidance_scale: float = choice(
        help="strength of guidance; 1 or less: none (Z-Image: 0)",
        metavar="G",
        group=_PICTURE,
        unset=_MODEL,
        **_STRENGTH,
    )
    start_sigma: float = choice(
        help="where later stages start, above 0; 1: a single stage; auto: the lowest level that covers what the "
        "transition gets wrong, as lssgen calibrate sigma measured it",
        metavar="S|auto",
        words=(AUTO,),
        group=_STAGES,
        unset=f"{_MODEL}; sr: {TRANSITIONS['sr'].start_sigma}",
    )
    min_resolution: int = choice(
        help="shortest side a first stage may have", metavar="PX", **_SIDE, group=_STAGES, unset=_MODEL
    )
    shorten: bool = choice(help="give stages below the base size fewer steps", group=_STAGES, unset=_MODEL)
    base_height: int = choice(
        help="height at which a stage gets all steps", metavar="PX", **_SIDE, group=_STAGES, unset=_MODEL
    )
    base_width: int = choice(
        help="width at which a stage gets all steps", metavar="PX", **_SIDE, group=_STAGES, unset=_MODEL
    )
    stage_steps: tuple[int, ...] = choice(
        (),
        help="steps of every stage's full schedule, smallest first, in place of what --steps and --shorten give",
        metavar="N,...",
        least=1,
        most=MOST_STEPS,
        group=_STAGES,
        unset="what they give",
    )
    scaling_space: ScalingSpace = choice(
        help="how a latent gets to the next size",
        group=_STAGES,
        unset="resnet, or latent where there is no trained upsampler",
    )
    hand_off: HandOff = choice(
        "own",
        help="noise share at which every stage but the last is left: 0, at its end; auto, as early as the next one's "
        "noise covers what is left out; or a number",
        metavar="S|auto",
        words=("own", AUTO),
        group=_STAGES,
        unset="own: 0 where a clean latent is taken over, auto where the noisy state is kept (dct)",
    )
    strength: float = choice(
        1.0,
        help="where a run that starts from a picture starts, as --start-sigma",
        metavar="S",
        group=_STAGES,
        unset="1, or 0.75 where a run gets a picture and no mask",
    )
    true_cfg_scale: float = choice(
        1.0,
        name="--true-guidance-scale",
        aliases=("--true-cfg-scale",),
        help="classifier-free guidance against a negative prompt, for models with embedded guidance; 1 or less: none",
        metavar="G",
        group=_PICTURE,
        **_STRENGTH,
    )
    cfg_truncation: float = choice(
        1.0,
        name="--guidance-until",
        aliases=("--cfg-truncation",),
        help="share of the way from noise to the picture beyond which steps go without guidance, at half the cost; "
        "flow models only; 1: none",
        metavar="SHARE",
        group=_PICTURE,
        **_SHARE,
    )
    solver: str = choice(
        OWN_SOLVER,
        help="own: the checkpoint's; or another one that fits, such as dpm++2m (lssgen-plan lists them)",
        metavar="NAME",
        group=_SOLVER,
    )
    scheduler: SchedulerChoice | None = choice(
        None,
        help="a diffusers scheduler's folder or file, or a name such as euler, unipc or dpm++2m-karras (lssgen-plan "
        "lists them)",
        metavar="FOLDER|FILE|NAME",
        group=_SOLVER,
        unset="the checkpoint's",
    )
    timestep_spacing: TimestepSpacing = choice(
        "own",
        help="how timesteps are picked: own (as the scheduler says), or leading, trailing or linspace; models made for "
        "few steps want trailing",
        group=_SOLVER,
    )
    sigma_schedule: SigmaSchedule = choice(
        "own",
        help="how noise levels are spread: own (as the scheduler says), default (as the timesteps), karras, "
        "exponential or beta",
        group=_SOLVER,
    )
    eta: float = choice(0.0, help="share of fresh noise in DDIM steps, 0 to 1", metavar="E", group=_SOLVER)
    skip_layers: SkipLayerGuidance | None = choice(
        None,
        name="--skip-layer-guidance",
        help="a third branch with some layers left out; so does any of the next four",
        group=_SKIPPING,
        unset="off",
    )
    controlnet_conditioning_scale: float = choice(
        1.0,
        name="--control-scale",
        aliases=("--controlnet-conditioning-scale",),
        help="strength of the control picture; 0: none",
        metavar="G",
        group=_CONTROL,
        **_STRENGTH,
    )
    control_guidance_start: float = choice(
        0.0,
        name="--control-start",
        aliases=("--control-guidance-start",),
        help="where it begins to act, as a share of every stage's schedule",
        metavar="SHARE",
        group=_CONTROL,
        **_SHARE,
    )
    control_guidance_end: float = choice(
        1.0,
        name="--control-end",
        aliases=("--control-guidance-end",),
        help="where it ends to act, as a share of every stage's schedule",
        metavar="SHARE",
        group=_CONTROL,
        **_SHARE,
    )
    control_mode: int | None = choice(
        None,
        help="what the picture shows, as the union ControlNet's authors count it; 0 is their first kind",
        metavar="N",
        least=0,
        most=10_000,
        group=_CONTROL,
        unset="none, as is right for ControlNets of one kind",
    )
    cached_steps: str = choice(
        NO_CACHE,
        help=f"steps that extrapolate the network's output and do not call it: {', '.join(MASKS)}, or f (evaluated) "
        "and c (cached) for every step, a word a stage, as in fffcfcf,ffcff",
        metavar="MASK",
        group=_SOLVER,
    )
    cache_order: int = choice(
        1,
        help="order of that extrapolation: 1, along a line; 0, as it was, which is safer where many steps are cached",
        metavar="0|1",
        least=0,
        most=1,
        group=_SOLVER,
    )
    sigmas: tuple[float, ...] = choice(
        (),
        help="own noise levels for flow models, before the shift, falling from at most 1",
        metavar="S,S,...",
        group=_SOLVER,
        unset="the schedule's",
    )
    start_rule: StartRule = choice(
        "published",
        help="meaning of --start-sigma: published (timestep, or share of the steps) or sigma (noise share)",
        group=_REPAIRS,
    )
    injection: Injection = choice(
        "label",
        help="noise level of a later stage's start: label (published) or sigma; differs for CogView4",
        group=_REPAIRS,
    )
    token_clamp: bool = choice(
        True,
        help="stop FLUX's shift from growing above 1024 x 1024 px (published), or let it grow as diffusers does",
        group=_REPAIRS,
    )
    pndm: PndmStart = choice("published", help="how later stages cut PNDM's list of timesteps", group=_REPAIRS)

    @classmethod
    def from_defaults(cls, defaults: Defaults, **given: Any) -> "PlanOptions":
        """The defaults, with what the user gave in their place.

        A value of None counts as not given; skip_layers may be True, for its own defaults, or False, scheduler the text
        that `SchedulerChoice.from_text` reads, and start_sigma "auto". A level that was measured, or that belongs to a
        transition, is a share of noise: with it, start_rule is "sigma" unless it is given.

        Raises:
            PlanError: A value outside its range, or "auto" where nothing was measured.
        """
        values: dict[str, Any] = {name: getattr(defaults, name) for name in Defaults.__dataclass_fields__}
        covering = values.pop("covering_sigmas")
        values.update((name, value) for name, value in given.items() if value is not None)
        space = TRANSITIONS.get(values["scaling_space"])
        if given.get("start_sigma") is None and space is not None and space.start_sigma is not None:
            values |= {"start_sigma": space.start_sigma, "start_rule": values.get("start_rule", "sigma")}
        elif isinstance(asked := values["start_sigma"], str):
            # What was measured is a share of noise, which a share of the steps is not.
            known = _covering(asked, values["scaling_space"], covering)
            values |= {"start_sigma": known, "start_rule": values.get("start_rule", "sigma")}
        if isinstance(asked := values.get("skip_layers"), bool):
            values["skip_layers"] = SkipLayerGuidance() if asked else None
        if isinstance(named := values.get("scheduler"), str):
            values["scheduler"] = SchedulerChoice.from_text(named)
        return cls(**values)

    def __post_init__(self) -> None:
        refuse_outside(self, PlanError)
        if self.height * self.width > MOST_PIXELS:
            raise PlanError(
                f"a picture of {self.width} x {self.height} px was asked for; ask for {MOST_PIXELS:,} pixels at most"
            )
        if self.requested_steps > MOST_STEPS:
            raise PlanError(f"{self.requested_steps} steps were asked for; ask for {MOST_STEPS} at most")
        if not 0 < self.start_sigma <= 1:
            raise PlanError(
                f"start_sigma is {self.start_sigma:g}; it must lie above 0 and be at most 1 "
                "(published value 0.75; 1 runs a single stage)"
            )
        if not 0 < self.strength <= 1:
            raise PlanError(f"strength is {self.strength:g}; it must lie above 0 and be at most 1")
        if not self.control_guidance_start < self.control_guidance_end:
            raise PlanError(
                f"control_guidance_start is {self.control_guidance_start:g} and control_guidance_end "
                f"{self.control_guidance_end:g}; the start must lie below the end, both in 0 to 1 "
                "(controlnet_conditioning_scale 0 turns the control picture off)"
            )
        if not 0 <= self.eta <= 1:
            raise PlanError(f"eta is {self.eta:g}; it must lie in 0 to 1")
        _one_of("scaling_space", self.scaling_space, get_args(ScalingSpace))
        _see_hand_off(self.hand_off)
        _one_of("timestep_spacing", self.timestep_spacing, get_args(TimestepSpacing))
        _one_of("sigma_schedule", self.sigma_schedule, get_args(SigmaSchedule))
        _one_of("start_rule", self.start_rule, get_args(StartRule))
        _one_of("injection", self.injection, get_args(Injection))
        _one_of("pndm", self.pndm, get_args(PndmStart))
        levels = self.sigmas
        falling = all(above > below for above, below in pairwise(levels))
        if not falling or not all(LEAST_SIGMA <= level <= 1 for level in levels):
            shown = ", ".join(f"{level:g}" for level in levels[:5]) + ", ..." * (len(levels) > 5)
            raise PlanError(
                f"custom sigmas must fall from level to level and lie above 0, at {LEAST_SIGMA:g} or more, and "
                f"at most at 1; got {shown}"
            )

    def in_one_stage(self) -> "PlanOptions":
        """The same run in one stage with all its steps evaluated: what stages and cached steps are compared with."""
        return replace(self, start_sigma=1.0, stage_steps=(), cached_steps=NO_CACHE)

    @property
    def requested_steps(self) -> int:
        """Number of steps of the full schedule: of `sigmas` where they are given, else `num_inference_steps`."""
        return len(self.sigmas) or self.num_inference_steps


def _covering(asked: str, space: ScalingSpace, known: Mapping[ScalingSpace, float]) -> float:
    """The noise level that a word stands for."""
    if asked != AUTO:
        raise PlanError(f"start_sigma is {asked!r}; it must be a number above 0 and at most 1, or {AUTO}")
    if space not in known:
        measured = f", only for {', '.join(known)}" if known else ""
        raise PlanError(
            f"start_sigma is {AUTO}, but nothing was measured for transitions by {space!r}{measured}: run "
            "lssgen-calibrate sigma on the bundle, or give a number (published value 0.75)"
        )
    # Where nothing needs covering, the stage still has its last step: without one it would paint nothing.
    return max(known[space], LEAST_SIGMA)


def _see_hand_off(asked: object) -> None:
    if isinstance(asked, str):
        _one_of("hand_off", asked, ("own", AUTO))
    elif isinstance(asked, bool) or not isinstance(asked, Real) or not 0 <= cast(float, asked) < 1:
        raise PlanError(f"hand_off is {str(asked)[:40]}; it must be 0 or more and below 1, or {AUTO}")


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise PlanError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")
