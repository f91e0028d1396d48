"""What a run may be asked for: keywords in diffusers' words, and the same resolved against a bundle."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal, TypedDict, cast, get_args

from lssgen.bundle import Bundle
from lssgen.choices import choice, refuse_outside
from lssgen.engines.demand import MOST_BATCH
from lssgen.errors import PlanError, PromptError
from lssgen.manifest import Gates, GuidanceRescale, Sizes
from lssgen.plan import ModelFacts, Plan, PlanOptions, ScalingSpace, SchedulerChoice, SkipLayerGuidance, make_plan
from lssgen.plan.options import MOST_SIDE_PX, Injection, PndmStart, StartRule
from lssgen.plan.scheduler_choice import SigmaSchedule, TimestepSpacing
from lssgen.plan.transitions import HandOff
from lssgen.runtime.kinds import refuse_other_kinds
from lssgen.runtime.noise import Field, check_seed
from lssgen.runtime.weighting import Weighting


class Options(TypedDict, total=False):
    """Keywords of a run, in diffusers' words; what is left out has the default of `Request` or of the bundle.

    The first block is that of `Request`, the other of `lssgen.plan.PlanOptions`; both explain them. `skip_layers` may
    also be True, which is `SkipLayerGuidance()`, or False, and `scheduler` the text of a folder, file or name.
    """

    negative_prompt: str | None
    prompt_weighting: Weighting
    seed: int
    noise_field: Field
    num_images: int
    batch: int
    guidance_rescale: float
    loras: tuple[str, ...]
    original_size: tuple[int, int] | None
    target_size: tuple[int, int] | None
    crops_coords_top_left: tuple[int, int]

    height: int
    width: int
    num_inference_steps: int
    guidance_scale: float
    true_cfg_scale: float
    cfg_truncation: float
    start_sigma: float | Literal["auto"]
    hand_off: HandOff
    strength: float
    min_resolution: int
    shorten: bool
    base_height: int
    base_width: int
    stage_steps: tuple[int, ...]
    scaling_space: ScalingSpace
    skip_layers: bool | SkipLayerGuidance
    controlnet_conditioning_scale: float
    control_guidance_start: float
    control_guidance_end: float
    control_mode: int | None
    solver: str
    scheduler: str | SchedulerChoice | None
    timestep_spacing: TimestepSpacing
    sigma_schedule: SigmaSchedule
    eta: float
    cached_steps: str
    cache_order: int
    sigmas: tuple[float, ...]
    start_rule: StartRule
    injection: Injection
    token_clamp: bool
    pndm: PndmStart


class Asked(Options, total=False):
    """What a pipeline may be asked: words of a run, and a time that chooses some of them.

    `lssgen.plan.budget.Budget` explains the two.
    """

    budget_ms: float | None
    speedup: float | None


MOST_PICTURES = 100_000
"""Pictures of a run; more are several runs."""

STRENGTH = 0.75
"""Strength of a run that starts from a picture without a mask: where the later stages of the paper's runs start."""

_TOLD = "what SDXL and CogView4 are told"
_OWN = "each stage's own"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A run as it is carried out: every choice made, and known to be possible.

    Attributes:
        plan: Stages and steps.
        plan_options: Choices that the plan was made from.
        negative_prompt: Text of what the pictures should not show. None: not given, which is the empty text to most
            models and zeros to SDXL (`Manifest.empty_negative`); an empty one is encoded like any other.
        prompt_weighting: Rules by which marks in a prompt weigh its words, "a1111" or "comfyui"; "none" reads them as
            text. See `lssgen.runtime.weighting`.
        seed: Picture i of the run is painted with seed + i.
        noise_field: Source of the noise that stages begin with: a draw for each "stage", as published, or one field of
            the "picture", so that a seed means the same noise whatever the number of stages.
        num_images: Pictures of every prompt.
        batch: Pictures painted at the same time; changes speed and memory, not the pictures.
        guidance_rescale: Share of rescaled guidance in [0, 1], for models that offer it.
        loras: LoRAs in the bundle's slots: files, with a strength behind a colon where it is not 1, or one for each
            stage ("style.safetensors:0.2/1").
        original_size, target_size: (height, width) in pixels that a network conditioned on sizes (SDXL, CogView4) is
            told in every stage. None: each stage's own size, as published, which keeps small stages from looking
            cropped.
        crops_coords_top_left: (top, left) in pixels that such a network is told.
    """

    plan: Plan
    plan_options: PlanOptions
    negative_prompt: str | None = choice(
        None,
        help='what the pictures should not show; "" is encoded, while SDXL hears zeros where none is given',
        unset="none",
    )
    prompt_weighting: Weighting = choice(
        "none",
        help="weigh the words of prompts by (red:1.3) and such, as this program does; none: marks are plain text",
    )
    seed: int = choice(0, help="picture i is painted with seed + i", metavar="N", least=0, most=2**64 - 1)
    noise_field: Field = choice(
        "stage",
        help="where the noise that stages begin with comes from: stage (a draw for each, as published) or picture (one "
        "field, so that a seed means the same noise whatever the number of stages)",
    )
    num_images: int = choice(1, help="pictures of every prompt", metavar="N", least=1, most=MOST_PICTURES)
    batch: int = choice(
        1, help="pictures painted at the same time; does not change them", metavar="N", least=1, most=MOST_BATCH
    )
    guidance_rescale: float = choice(0.0, help="0 to 1, for models that offer it", metavar="PHI")
    loras: tuple[str, ...] = choice(
        (),
        name="--lora",
        help="paint with a LoRA, in a bundle with slots for them (lssgen export --lora-slots), with a strength, or one "
        "for each stage, as in 0.2/1; may be repeated",
        metavar="FILE[:STRENGTH]",
        unset="none; a strength of 1",
        repeated=True,
    )
    original_size: tuple[int, int] | None = choice(
        None, help="size of the picture before it was cropped", group=_TOLD, unset=_OWN, most=MOST_SIDE_PX
    )
    target_size: tuple[int, int] | None = choice(
        None, help="size after that", group=_TOLD, unset=_OWN, most=MOST_SIDE_PX
    )
    crops_coords_top_left: tuple[int, int] = choice(
        (0, 0),
        name="--crop-left-top",
        metavar="LEFTxTOP",
        help="pixels cut off there",
        group=_TOLD,
        most=MOST_SIDE_PX,
    )

    def __post_init__(self) -> None:
        refuse_outside(self, PlanError)
        if self.prompt_weighting not in (known := get_args(Weighting)):
            raise PlanError(f"prompt_weighting is {self.prompt_weighting!r}; it must be one of {', '.join(known)}")
        if self.noise_field not in (known := get_args(Field)):
            raise PlanError(f"noise_field is {self.noise_field!r}; it must be one of {', '.join(known)}")
        check_seed(self.seed)
        # Found now: with guidance off nobody tokenizes it, and run.json could not be written with it.
        if (self.negative_prompt or "") != (self.negative_prompt or "").encode(errors="replace").decode():
            raise PromptError("the negative prompt holds what is not text (a lone half of a surrogate pair)")
        if not 0 <= self.guidance_rescale <= 1:
            raise PlanError(f"guidance_rescale is {self.guidance_rescale:g}; it must lie in 0 to 1")
        for name, least in (("original_size", 1), ("target_size", 1), ("crops_coords_top_left", 0)):
            # A type alone does not tell (height, width) from three numbers, which JSON and callers may give.
            sides: tuple[int, ...] | None = getattr(self, name)
            if sides is not None and (len(sides) != 2 or min(sides) < least):
                raise PlanError(f"{name} is {sides}; it must be two numbers of pixels, each at least {least}")

    @property
    def branches(self) -> frozenset[str]:
        """Every guidance branch that some step evaluates."""
        return frozenset(branch for stage in self.plan.stages for step in stage.steps for branch, _ in step.guidance)


MakePlan = Callable[[ModelFacts, PlanOptions], Plan]


def request_from_options(bundle: Bundle, options: Options, make: MakePlan = make_plan) -> Request:
    """Fill in the defaults, make the plan, and see that the bundle can carry it out.

    Args:
        bundle: What paints.
        options: Words of the caller.
        make: Makes the plan; a server's remembers those that it made.

    Raises:
        PlanError: An unknown keyword, a value outside its range, or something the bundle has no graph for.
    """
    refuse_unknown(options)
    refuse_other_kinds(options, Options)
    facts = bundle.manifest.facts
    given = {name: value for name, value in options.items() if value is not None}  # None counts as not given
    own = {name: value for name, value in given.items() if name in Request.__dataclass_fields__}
    planned = {name: value for name, value in given.items() if name not in own}
    plan_options = PlanOptions.from_defaults(facts.defaults, **planned)
    request = Request(plan=make(facts, plan_options), plan_options=plan_options, **own)  # pyright: ignore[reportArgumentType]
    _refuse_what_is_missing(bundle, request)
    return request


def options_from_request(request: Request) -> Options:
    """Every choice as keywords: the same request comes out of `request_from_options` again."""
    choices = {
        word: getattr(request if word in Request.__dataclass_fields__ else request.plan_options, word)
        for word in Options.__annotations__
    }
    # None would count as not given, and bring back a default that is on; False says that it is off.
    return cast(Options, {**choices, "skip_layers": choices["skip_layers"] or False})


def refuse_unknown(words: Iterable[str], known: Iterable[str] = Options.__annotations__) -> None:
    """Raise PlanError if a word is none of those that are known, the keywords of `Options`."""
    known = tuple(known)
    for word in words:
        if word not in known:
            near = get_close_matches(word, known, 1)
            advice = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
            raise PlanError(f"unknown option {word[:40]!r}; {advice}")


def _refuse_weighting(bundle: Bundle, weighting: Weighting) -> None:
    heard = [rules for rules in bundle.manifest.tokenizers if rules.heard is not None]
    if weighting == "none":
        return
    if not heard:
        raise PlanError(
            f"bundle {bundle.folder} does not say where single tokens are heard, so words cannot be weighed: leave "
            "prompt_weighting at none, or export the model again"
        )
    if weighting == "comfyui" and any(rules.pad_to == "longest" for rules in heard):
        raise PlanError(
            "prompt_weighting 'comfyui' compares every token with the empty prompt's, but "
            f"{bundle.manifest.facts.name} fills prompts up to their own length, so that the empty one has fewer: use "
            "a1111 or none"
        )


def refuse_too_many(pictures: int) -> None:
    """Raise PlanError if a run would have more pictures than `MOST_PICTURES`."""
    if pictures > MOST_PICTURES:
        raise PlanError(f"{pictures:,} pictures were asked for; ask for {MOST_PICTURES:,} a run at most")


_REMEDIES = {"resnet": " with --upsampler", "sr": " with --sr FILE"}
"""Flag that an export needs besides for a transition, by its name."""


def _refuse_what_is_missing(bundle: Bundle, request: Request) -> None:
    manifest, plan = bundle.manifest, request.plan
    _refuse_weighting(bundle, request.prompt_weighting)
    if len(plan.stages) > 1 and f"transition_{plan.scaling_space}" not in manifest.graphs:
        spaces = [name.removeprefix("transition_") for name in manifest.graphs if name.startswith("transition_")]
        raise PlanError(
            f"bundle {bundle.folder} has no graph for scaling_space {plan.scaling_space!r}, only for "
            f"{', '.join(spaces) or 'single-stage runs'}; choose one of these, or export again"
            + _REMEDIES.get(plan.scaling_space, f" with --transitions {plan.scaling_space},...")
        )
    if request.plan_options.skip_layers is not None and not manifest.feeds(Gates):
        raise PlanError(
            f"bundle {bundle.folder} was exported without layer gates, so it has no skip-layer guidance; "
            "export it with --skip-layers"
        )
    for stage in plan.stages:
        for step in stage.steps:
            # Made and dropped: it raises where the step blends more estimates than the graph carries.
            step.row(manifest.history)
    told = (request.original_size, request.target_size, request.crops_coords_top_left)
    if told != (None, None, (0, 0)) and not manifest.feeds(Sizes):
        raise PlanError(
            f"{manifest.facts.name} is not told sizes; leave out original_size, target_size and crops_coords_top_left"
        )
    if request.guidance_rescale and not manifest.feeds(GuidanceRescale):
        raise PlanError(f"{manifest.facts.name} has no guidance_rescale; leave it out")
