"""Schedules as records: the levels of a model, and how a solver is to walk them."""

from dataclasses import dataclass
from typing import Literal

from lssgen.plan.levels import Halves
from lssgen.plan.schedulers import Walk
from lssgen.plan.sigmas import SigmaRule
from lssgen.plan.solvers import Solver, Tuning

Prediction = Literal["epsilon", "v_prediction"]
Spacing = Literal["leading", "trailing", "linspace"]
End = Literal["clean", "lowest", "last"]
"""Level that the last step leads to: a clean picture, the lowest of the training's, or the one it is at already."""

BetaTable = Literal["linear", "scaled_linear", "squaredcos_cap_v2"]
ShiftType = Literal["exponential", "linear"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowSchedule:
    """Flow matching: x = (1 - sigma) z + sigma e, with levels shifted towards noise.

    Attributes:
        train_steps: Labels run from 0 to this.
        shift: The static shift, used where `dynamic` is False.
        dynamic: True if the shift depends on the number of tokens.
        shift_type: Form of the dynamic shift.
        base_shift, max_shift, base_tokens, max_tokens: The line, or the root, that gives the dynamic shift.
        sigma_rule: Spacing between the first and the last level of the shifted grid.
        terminal: Level that the grid is stretched to end at, once shifted; 0: it is not.
        grid: Levels before the shift, where the scheduler has its own instead of the model's: those of UniPC, or of
            DPM-Solver.
        end: Level that the last step leads to.
        halves: Second evaluations of the solver.
    """

    train_steps: int
    shift: float
    dynamic: bool
    shift_type: ShiftType
    base_shift: float
    max_shift: float
    base_tokens: int
    max_tokens: int
    sigma_rule: SigmaRule = "default"
    terminal: float = 0.0
    grid: Literal["", "unipc", "dpm"] = ""
    end: End = "clean"
    halves: Halves = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class BetaSchedule:
    """Diffusion that was trained on a fixed table of betas (SD, SDXL).

    Attributes:
        train_steps, beta_start, beta_end, beta_schedule: The table.
        trained: The table itself; empty: it is made from the fields above.
        zero_snr: Stretch the table so that nothing of the picture is left at its end.
        prediction: Meaning of the network's output.
        walk: Way in which timesteps become steps.
        spacing, offset: Rule by which timesteps are picked, and a number added to them.
        repeats_second: Evaluate the second timestep twice (PNDM's warm-up).
        last_alpha_one: True if the level below timestep 0 is a clean picture; else it is that of timestep 0.
        sigma_rule: Spacing of sigmas.
        sigma_min, sigma_max: Ends of that spacing; None: those of the table or of the timesteps.
        rounds: The labels of Karras sigmas are rounded.
        end: Level that the last step leads to, for classes that work with sigma.
        continuous: The labels are ln(sigma) / 4.
        least_log_snr: Timesteps with a lower log-SNR are left out.
        origin_steps: Steps of the schedule that LCM was distilled on.
        halves: Second evaluations of the solver.
    """

    train_steps: int
    beta_start: float
    beta_end: float
    beta_schedule: BetaTable
    trained: tuple[float, ...] = ()
    zero_snr: bool = False
    prediction: Prediction
    walk: Walk
    spacing: Spacing
    offset: int
    repeats_second: bool = False
    last_alpha_one: bool = True
    sigma_rule: SigmaRule = "default"
    sigma_min: float | None = None
    sigma_max: float | None = None
    rounds: bool = False
    end: End = "clean"
    continuous: bool = False
    least_log_snr: float | None = None
    origin_steps: int = 50
    halves: Halves = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EdmSchedule:
    """Diffusion with EDM preconditioning (Playground v2.5).

    Attributes:
        sigma_min, sigma_max, rho: The Karras grid.
        sigma_data: Standard deviation of the latents.
        sigma_rule: Spacing of the grid: "karras" or "exponential".
        prediction: Meaning of the network's output.
        end: Level that the last step leads to.
        halves: Second evaluations of the solver.
    """

    sigma_min: float
    sigma_max: float
    rho: float
    sigma_data: float
    sigma_rule: Literal["karras", "exponential"]
    prediction: Prediction
    end: End = "clean"
    halves: Halves = ""


Schedule = FlowSchedule | BetaSchedule | EdmSchedule


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How a model is sampled: levels, solver, and what the solver is told.

    Attributes:
        name: Solver's key in `SOLVERS`.
        solver: Its record.
        schedule: The levels.
        tuning: Numbers and choices that the solver is told.
    """

    name: str
    solver: Solver
    schedule: Schedule
    tuning: Tuning
