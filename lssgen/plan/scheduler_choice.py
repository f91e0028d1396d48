"""The scheduler that a user chooses: a diffusers scheduler's folder or file, or a name."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, cast

from lssgen.errors import PlanError
from lssgen.jsons import JsonError, NoFileError, read_json
from lssgen.plan.schedulers import SCHEDULERS
from lssgen.plan.solvers import SOLVERS

SigmaSchedule = Literal["own", "default", "karras", "exponential", "beta"]
"""Spacing of sigmas: the checkpoint's own; that of the timesteps; or one of three rules."""

TimestepSpacing = Literal["own", "leading", "trailing", "linspace"]
"""Rule by which timesteps are picked: the checkpoint's own, or one of diffusers'."""

FILE = "scheduler_config.json"

_LARGEST = 1 << 20
"""Bytes; a table of a thousand betas takes some 25,000."""

# What people call these elsewhere, by the name here.
_ELSEWHERE: Mapping[str, str] = {
    "euler-a": "euler-ancestral",
    "dpm2": "kdpm2",
    "dpm-2": "kdpm2",
    "dpm2-a": "kdpm2-ancestral",
    "dpm-2-ancestral": "kdpm2-ancestral",
    "dpm++2m-sde-gpu": "dpm++2m-sde",
    "uni-pc": "unipc",
    "plms": "pndm",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerChoice:
    """A scheduler in the place of the checkpoint's own.

    Attributes:
        solver: Name out of `SOLVERS`; empty: that of `config`.
        sigma_schedule: Spacing of sigmas that was named with it.
        config: Contents of a scheduler_config.json, to be used instead of the checkpoint's; empty: that stays.
    """

    solver: str = ""
    sigma_schedule: SigmaSchedule = "own"
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @classmethod
    def from_text(cls, text: str) -> "SchedulerChoice":
        """Read a diffusers scheduler's folder or file, or a name: of a solver, or of a diffusers class.

        "-karras", "-exponential" or "-beta" may follow a name.

        Raises:
            PlanError: There is no such file or name, or the file is not a scheduler's configuration.
        """
        path = Path(text)
        # What looks like a path is one: a missing file is told as that, and not as a misspelt name.
        if "/" in text or text.endswith(".json") or path.exists():
            return cls(config=_config(path))
        solver, rule = _named(text)
        return cls(solver=solver, sigma_schedule=cast(SigmaSchedule, rule or "own"))

    def __post_init__(self) -> None:
        if self.solver and self.solver not in SOLVERS:
            raise PlanError(f"there is no solver {self.solver!r}; there are {', '.join(SOLVERS)}")

    def __str__(self) -> str:
        if self.config:
            return str(self.config.get("_class_name"))
        return self.solver + (f"-{self.sigma_schedule}" if self.sigma_schedule != "own" else "")


def _named(text: str) -> tuple[str, str]:
    """Solver and spacing of sigmas that a name means."""
    name, rule = re.sub(r"[ _]+", "-", text.strip()), ""
    if found := re.fullmatch(r"(.+)-(karras|exponential|beta)", name, re.IGNORECASE):
        name, rule = found[1], found[2].lower()
    by_class = {record.name.lower(): record for record in SCHEDULERS.values()}
    record = by_class.get(name.lower()) or by_class.get(name.lower() + "scheduler")
    if record is not None:
        # A class without further words leaves its solver's order and kind to the configuration.
        return record.solvers[-1], rule
    plain = re.sub(r"^(dpm)\+\+-", r"\1++", name.lower().replace("dpmpp", "dpm++"))
    plain = _ELSEWHERE.get(plain, plain)
    if plain in SOLVERS:
        return plain, rule
    near = get_close_matches(plain, [*SOLVERS, *_ELSEWHERE], 1)
    raise PlanError(
        f"there is no scheduler called {text!r}"
        + (f" (did you mean {near[0]}?)" if near else "")
        + f"; give a diffusers scheduler's folder or its {FILE}, a class of diffusers, or one of {', '.join(SOLVERS)}, "
        "with -karras, -exponential or -beta behind it for the spacing of sigmas"
    )


def _config(path: Path) -> Mapping[str, Any]:
    file = path / FILE if path.is_dir() else path
    if path.is_dir() and not file.exists() and (path / "scheduler" / FILE).exists():
        file = path / "scheduler" / FILE  # the checkpoint's folder, not the scheduler's
    try:
        found = read_json(file, dict[str, Any], most=_LARGEST)
    except NoFileError as error:
        raise PlanError(
            f"{file} {error}; --scheduler takes a folder with a {FILE}, that file, or a name such as euler or unipc"
        ) from error
    except JsonError as error:
        raise PlanError(f"{file} {str(error)[:120]}; give a scheduler's {FILE}") from error
    if not isinstance(found.get("_class_name"), str):
        raise PlanError(f"{file} is not the configuration of a scheduler: it names no _class_name; give its {FILE}")
    return found
