"""Write docs/schedulers.md: which solvers and scheduler classes there are, from the records, and what checks them.

python docs/make_schedulers.py
"""

import ast
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from lssgen.plan.schedulers import NEAR_STRANGERS, SCHEDULERS
from lssgen.plan.solvers import SOLVERS

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "schedulers.md"
ORACLE = ROOT / "tests" / "plan" / "test_solvers_oracle.py"

HEAD = """# Schedulers and solvers

This page is written by `docs/make_schedulers.py` from the records in `lssgen/plan/` and the cases of \
`tests/plan/test_solvers_oracle.py`.

Graphs do not depend on the scheduler, so it is chosen when a bundle is exported, when a run is planned, or when it \
is painted:

    lssgen run "a red star" --bundle bundles/sdxl --scheduler unipc --sigma-schedule karras --steps 12
    lssgen run "a red star" --bundle bundles/turbo --timestep-spacing trailing --steps 4 --guidance-scale 0
    lssgen export --model sdxl --scheduler unipc
    lssgen plan --model sdxl --scheduler dpm++2m-karras

| flag | keyword | takes |
|---|---|---|
| `--scheduler` | `scheduler=` | a diffusers scheduler's folder, its `scheduler_config.json`, or a name: a solver \
below or a class of diffusers, with `-karras`, `-exponential` or `-beta` behind it |
| `--timestep-spacing` | `timestep_spacing=` | `leading`, `trailing` or `linspace`: how diffusion models pick their \
timesteps; `own` is what the scheduler says |
| `--sigma-schedule` | `sigma_schedule=` | `karras`, `exponential` or `beta`: how noise levels are spread; \
`default` is as the timesteps fall, `own` what the scheduler says |
| `--solver` | `solver=` | a solver below, for the scheduler that there is; `own` is the scheduler's |

A file takes the place of the checkpoint's configuration; a name keeps that and reads it as diffusers' \
`from_config` does: what it leaves out is the default of the class that is named. `lssgen plan` prints the schedule \
in use, and `run.json`
holds a chosen configuration whole, so that `--config run.json` needs the file no more.

A plan says so where a schedule begins far below the noisiest level that the model was trained at, as "leading" \
timesteps do with few steps: the model is given pure noise and told that there is little of it. Models made for few \
steps
(Turbo, Lightning) want `--timestep-spacing trailing`. A folder of such a model says so itself; of a single file, \
the name is looked at ("lightning_4step", "Hyper-SD15-8steps", "sd_xl_turbo", "lcm"), with a note that tells what \
was taken.

## Solvers

Evaluations are those of the network in a step. The memory is the estimates of earlier evaluations that a step \
looks back on: SD and SDXL carry four, the others three; a bundle of an older version may carry fewer, and is then \
to be exported again.
Stages begin without a memory.
"""

CLASSES = """
## Classes of diffusers

Every configuration that these classes read is either reproduced, or refused with the name of its field and the \
nearest solver that works. Fields that a class does not read are passed over, as diffusers does.
Each case is run in a first and a later stage, for several numbers of steps, against the class itself: the same \
levels, the same latents to 3e-6 of their size, the same number of random draws.
"""

TAIL = """
Where diffusers' own numbers go astray, these do not follow: LMS in the middle of a schedule weighs estimates that \
it does not have; UniPC's "bh1" and DPM-Solver++ of third order multiply zero by infinity or divide by it on some \
last steps;
"trailing" timesteps of some numbers of steps come out one too many. The third order of `sde-dpmsolver++` does not \
converge in diffusers, and is refused.

## What does not fit

A step here is one affine combination of the latent, of estimates and of one draw of noise \
(`lssgen/plan/table.py`). What clips or thresholds the picture in every step does not fit, nor what draws noise in \
a trial step that it then takes back (DPM++ SDE).

| class | nearest |
|---|---|
"""


def page() -> str:
    """The whole page."""
    strangers = "".join(f"| `{name}` | `{near[0]}` |\n" for name, near in NEAR_STRANGERS.items())
    return HEAD + "\n" + _solvers() + CLASSES + "\n" + _classes() + TAIL + strangers


def _solvers() -> str:
    kinds = {"beta": "SD, SDXL", "flow": "SD3, FLUX.1, CogView4", "edm": "Playground"}
    rows = [
        (
            f"`{name}`",
            f"`{solver.scheduler}`" if solver.scheduler else "-",
            ", ".join(f"`{field}={value}`" for field, value in solver.fields.items()) or "-",
            "; ".join(kinds[kind] for kind in solver.kinds),
            solver.order,
            str(solver.evaluations),
            str(solver.memory),
            "yes" if solver.draws else "no",
        )
        for name, solver in SOLVERS.items()
    ]
    return _table(("name", "diffusers", "with", "for", "order", "evaluations", "memory", "draws noise"), rows)


def _classes() -> str:
    cases = _cases()
    rows = [
        (
            f"`{name}`",
            ", ".join(f"`{solver}`" for solver in record.solvers),
            "yes" if "timestep_spacing" in record.fields and "skip_prk_steps" not in record.fields else "no",
            "yes" if {"use_karras_sigmas", "sigma_schedule"} & set(record.fields) else "no",
            str(cases[name]),
        )
        for name, record in SCHEDULERS.items()
    ]
    return _table(("class", "solvers", "`--timestep-spacing`", "`--sigma-schedule`", "cases compared"), rows)


def _cases() -> Counter[str]:
    """Configurations of each class that are compared with diffusers."""
    found: Counter[str] = Counter()
    names = {"FLOW": "FlowMatchEulerDiscreteScheduler"}
    for node in ast.walk(ast.parse(ORACLE.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Tuple) and len(node.elts) in (3, 4) and isinstance(node.elts[0], ast.Constant):
            kind = node.elts[1]
            name = kind.value if isinstance(kind, ast.Constant) else names.get(getattr(kind, "id", ""))
            if name in SCHEDULERS:
                found[str(name)] += 1
    return found


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
