"""What a run may be asked for: keywords in diffusers' words, and the same resolved against a bundle."""

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TypedDict, cast

from lssgen.bundle import Bundle
from lssgen.errors import PlanError
from lssgen.plan import Plan, PlanOptions, ScalingSpace, SkipLayerGuidance, make_plan
from lssgen.plan.options import Injection, PndmStart, StartRule
from lssgen.runtime.noise import check_seed


class Options(TypedDict, total=False):
    """Keywords of a run, in diffusers' words; what is left out has the default of `Request` or of the bundle.

    The first block is explained by `Request`, the others by `lssgen.plan.PlanOptions`, which has `steps` for
    `num_inference_steps` and `true_guidance_scale` for `true_cfg_scale`. `skip_layers` is skip-layer guidance;
    True takes the numbers of the checkpoint's authors.
    """

    negative_prompt: str | None
    seed: int
    num_images: int
    batch: int
    guidance_rescale: float
    original_size: tuple[int, int] | None
    target_size: tuple[int, int] | None
    crops_coords_top_left: tuple[int, int]

    height: int
    width: int
    num_inference_steps: int
    guidance_scale: float
    true_cfg_scale: float
    start_sigma: float
    strength: float
    min_resolution: int
    shorten: bool
    base_height: int
    base_width: int
    scaling_space: ScalingSpace
    skip_layers: bool | SkipLayerGuidance
    solver: str
    eta: float
    sigmas: tuple[float, ...]
    start_rule: StartRule
    injection: Injection
    token_clamp: bool
    pndm: PndmStart


STRENGTH = 0.75
"""Of a run that starts from a picture without a mask: as noisy as the later stages of the paper's runs start."""

PLAN_WORDS = {"num_inference_steps": "steps", "true_cfg_scale": "true_guidance_scale"}
"""Where diffusers and the plan have different words for the same thing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A run as it is carried out: every choice made, and known to be possible.

    Attributes:
        plan: Stages and steps.
        plan_options: What the plan was made from.
        negative_prompt: What the pictures should not show. None: not given, which is the empty text to most models and
            zeros to SDXL (`Manifest.empty_negative`); an empty one is encoded like any other.
        seed: Picture i of the run is painted with seed + i.
        num_images: Pictures of every prompt.
        batch: Pictures painted at the same time; changes speed and memory, not the pictures.
        guidance_rescale: Share of rescaled guidance in [0, 1], for models that offer it.
        original_size, target_size: (height, width) in pixels that a network conditioned on sizes (SDXL, CogView4) is
            told in every stage. None: each stage's own size, as published, which keeps small stages from looking
            cropped.
        crops_coords_top_left: (top, left) in pixels that such a network is told.
    """

    plan: Plan
    plan_options: PlanOptions
    negative_prompt: str | None = None
    seed: int = 0
    num_images: int = 1
    batch: int = 1
    guidance_rescale: float = 0.0
    original_size: tuple[int, int] | None = None
    target_size: tuple[int, int] | None = None
    crops_coords_top_left: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        for name in ("num_images", "batch"):
            value: int = getattr(self, name)
            if value < 1:
                raise PlanError(f"{name} is {value}; it must be at least 1")
        check_seed(self.seed)
        if not 0 <= self.guidance_rescale <= 1:
            raise PlanError(f"guidance_rescale is {self.guidance_rescale:g}; it must lie in 0 to 1")
        for name, least in (("original_size", 1), ("target_size", 1), ("crops_coords_top_left", 0)):
            sides: tuple[int, ...] | None = getattr(self, name)
            if sides is not None and (len(sides) != 2 or min(sides) < least):
                raise PlanError(f"{name} is {sides}; it must be two numbers of pixels, each at least {least}")

    @property
    def branches(self) -> frozenset[str]:
        """Every guidance branch that some step evaluates."""
        return frozenset(branch for stage in self.plan.stages for step in stage.steps for branch, _ in step.guidance)


def request_from_options(bundle: Bundle, options: Options) -> Request:
    """Fill in the defaults, make the plan, and see that the bundle can carry it out.

    Raises:
        PlanError: An unknown keyword, a value outside its range, or something the bundle has no graph for.
    """
    refuse_unknown(options)
    manifest = bundle.manifest
    own = {name: value for name, value in options.items() if name in Request.__dataclass_fields__}
    given = {PLAN_WORDS.get(name, name): value for name, value in options.items() if name not in own}
    given["skip_layers"] = _skip_layers(bundle, options.get("skip_layers", False))
    plan_options = PlanOptions.from_defaults(manifest.facts.defaults, **given)
    request = Request(plan=make_plan(manifest.facts, plan_options), plan_options=plan_options, **own)  # pyright: ignore[reportArgumentType]
    _refuse_what_is_missing(bundle, request)
    return request


def options_from_request(request: Request) -> Options:
    """Every choice as keywords: the same request comes out of `request_from_options` again."""
    choices: dict[str, object] = {}
    for word in Options.__annotations__:
        holder = request if word in Request.__dataclass_fields__ else request.plan_options
        choices[word] = getattr(holder, PLAN_WORDS.get(word, word))
    if request.plan_options.skip_layers is None:
        choices["skip_layers"] = False
    return cast(Options, choices)


def refuse_unknown(words: Iterable[str], known: Iterable[str] = Options.__annotations__) -> None:
    """Raise PlanError if a word is none of those that are known, the keywords of `Options`."""
    known = tuple(known)
    for word in words:
        if word not in known:
            near = get_close_matches(word, known, 1)
            advice = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
            raise PlanError(f"unknown option {word!r}; {advice}")


def _skip_layers(bundle: Bundle, asked: bool | SkipLayerGuidance) -> SkipLayerGuidance | None:
    skip = bundle.manifest.skip_layers
    if asked is False:
        return None
    if skip is None:
        raise PlanError(
            f"bundle {bundle.folder} was exported without layer gates, so it has no skip-layer guidance; "
            "export it with --skip-layers"
        )
    return SkipLayerGuidance(scale=skip.scale, start=skip.start, stop=skip.stop) if asked is True else asked


def _refuse_what_is_missing(bundle: Bundle, request: Request) -> None:
    manifest, plan = bundle.manifest, request.plan
    if len(plan.stages) > 1 and f"transition_{plan.scaling_space}" not in manifest.graphs:
        spaces = [name.removeprefix("transition_") for name in manifest.graphs if name.startswith("transition_")]
        raise PlanError(
            f"bundle {bundle.folder} has no graph for scaling_space {plan.scaling_space!r}, only for "
            f"{', '.join(spaces) or 'single-stage runs'}; choose one of these, or export again"
            + (" with --upsampler" if plan.scaling_space == "resnet" else "")
        )
    for stage in plan.stages:
        for step in stage.steps:
            step.row(manifest.history)
    told = (request.original_size, request.target_size, request.crops_coords_top_left)
    if told != (None, None, (0, 0)) and not manifest.size_ports:
        raise PlanError(
            f"{manifest.facts.name} is not told sizes; leave out original_size, target_size and crops_coords_top_left"
        )
    if request.guidance_rescale and "guidance_rescale" not in {p.name for p in manifest.graphs["step"].inputs}:
        raise PlanError(f"{manifest.facts.name} has no guidance_rescale; leave it out")
