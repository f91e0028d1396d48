"""Flags that choose a plan, for every command that makes one."""

import argparse
from typing import Any, get_args

from lssgen.errors import PlanError
from lssgen.plan import ModelFacts, PlanOptions, ScalingSpace, SkipLayerGuidance
from lssgen.plan.options import Injection, PndmStart, SkipWindow, StartRule

_SKIP = SkipLayerGuidance()


def add_plan_options(parser: argparse.ArgumentParser) -> None:
    """Add the flags. What is not given comes from the model's defaults."""
    group = parser.add_argument_group("what to paint (defaults are the model's own)")
    group.add_argument("--size", metavar="PX", help="picture size in pixels: 1024, or 1280x768 for width x height")
    group.add_argument("--height", type=int, metavar="PX", help="picture height in pixels")
    group.add_argument("--width", type=int, metavar="PX", help="picture width in pixels")
    group.add_argument("--steps", type=int, metavar="N", help="steps of the full schedule (num_inference_steps)")
    group.add_argument("--guidance-scale", type=float, metavar="G", help="strength of guidance; 1 or less: none")
    group.add_argument(
        "--true-guidance-scale",
        type=float,
        metavar="G",
        help="classifier-free guidance against a negative prompt, for models with embedded guidance (true_cfg_scale)",
    )
    group = parser.add_argument_group("stages")
    group.add_argument(
        "--start-sigma", type=float, metavar="S", help="where later stages start, above 0; 1: a single stage"
    )
    group.add_argument(
        "--strength", type=float, metavar="S", help="where a run that starts from a picture starts, as --start-sigma"
    )
    group.add_argument("--min-resolution", type=int, metavar="PX", help="shortest side a first stage may have")
    group.add_argument(
        "--shorten", action=argparse.BooleanOptionalAction, help="give stages below the base size fewer steps"
    )
    group.add_argument("--base-size", metavar="PX", help="size at which a stage gets all steps: 1024, or 1280x768")
    group.add_argument("--scaling-space", choices=get_args(ScalingSpace), help="how a latent gets to the next size")
    group = parser.add_argument_group("solver")
    group.add_argument("--solver", metavar="NAME", help="another solver than the checkpoint's own, such as dpm++2m")
    group.add_argument("--eta", type=float, metavar="E", help="share of fresh noise in DDIM steps, 0 to 1")
    group.add_argument(
        "--sigmas", metavar="S,S,...", help="own noise levels for flow models, before the shift, falling from at most 1"
    )
    group = parser.add_argument_group("skip-layer guidance")
    group.add_argument("--skip-layer-guidance", action="store_true", help="turn it on")
    group.add_argument("--skip-scale", type=float, default=_SKIP.scale, metavar="G", help="default: %(default)s")
    group.add_argument("--skip-start", type=float, default=_SKIP.start, metavar="SHARE", help="default: %(default)s")
    group.add_argument("--skip-stop", type=float, default=_SKIP.stop, metavar="SHARE", help="default: %(default)s")
    group.add_argument(
        "--skip-window",
        choices=get_args(SkipWindow),
        default=_SKIP.window,
        help="what the shares refer to: published (anew in every stage, of all steps), stage (of the stage's own "
        "schedule) or first (as published, first stage only); default: %(default)s",
    )
    group = parser.add_argument_group("repairs of published behaviour")
    group.add_argument(
        "--start-rule",
        choices=get_args(StartRule),
        help="meaning of --start-sigma: published (timestep, or share of the steps) or sigma (noise share)",
    )
    group.add_argument(
        "--injection",
        choices=get_args(Injection),
        help="noise level of a later stage's start: label (published) or sigma; differs for CogView4",
    )
    group.add_argument(
        "--token-clamp",
        action=argparse.BooleanOptionalAction,
        help="stop FLUX's shift from growing above 1024 x 1024 px (published), or let it grow as diffusers does",
    )
    group.add_argument("--pndm", choices=get_args(PndmStart), help="how later stages cut PNDM's list of timesteps")


def plan_options(args: argparse.Namespace, facts: ModelFacts) -> PlanOptions:
    """The options that the flags ask for, and the model's defaults for the rest.

    Raises:
        PlanError: A flag holds something impossible.
    """
    return PlanOptions.from_defaults(facts.defaults, **given_options(args))


def given_options(args: argparse.Namespace) -> dict[str, Any]:
    """What the flags say, by field of `PlanOptions`; what was not given is left out.

    Raises:
        PlanError: A flag holds something impossible.
    """
    height, width = size_from_text(args.size, "--size")
    base_height, base_width = size_from_text(args.base_size, "--base-size")
    skip = SkipLayerGuidance(scale=args.skip_scale, start=args.skip_start, stop=args.skip_stop, window=args.skip_window)
    flags: dict[str, Any] = {
        "height": height if args.height is None else args.height,
        "width": width if args.width is None else args.width,
        "steps": args.steps,
        "guidance_scale": args.guidance_scale,
        "true_guidance_scale": args.true_guidance_scale,
        "start_sigma": args.start_sigma,
        "strength": args.strength,
        "min_resolution": args.min_resolution,
        "shorten": args.shorten,
        "base_height": base_height,
        "base_width": base_width,
        "scaling_space": args.scaling_space,
        "solver": args.solver,
        "eta": args.eta,
        "sigmas": _levels(args.sigmas),
        "skip_layers": skip if args.skip_layer_guidance else None,
        "start_rule": args.start_rule,
        "injection": args.injection,
        "token_clamp": args.token_clamp,
        "pndm": args.pndm,
    }
    return {name: value for name, value in flags.items() if value is not None}


def size_from_text(text: str | None, flag: str) -> tuple[int | None, int | None]:
    """(height, width) of "1024" or "WIDTHxHEIGHT"."""
    if text is None:
        return None, None
    width, _, height = text.lower().partition("x")
    try:
        return int(height or width), int(width)
    except ValueError as error:
        raise PlanError(f"{flag} is {text!r}; write one number, or width x height such as 1280x768") from error


def _levels(text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise PlanError(f"--sigmas is {text!r}; write numbers with commas between, such as 1,0.8,0.5,0.2") from error
