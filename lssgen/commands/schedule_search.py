"""lssgen calibrate schedule: search the schedules of a bundle that are worth having, and say which they are."""

import argparse
from pathlib import Path

from lssgen.bundle import Bundle
from lssgen.calibration.config import SCHEDULE_PROMPTS, RangesConfig, ScheduleConfig
from lssgen.calibration.judges import judge_of
from lssgen.calibration.prompts import read_prompts
from lssgen.calibration.schedules import SearchJob, markdown, search_schedules, write_plot
from lssgen.commands.flags import given
from lssgen.commands.plan_options import given_plan_options
from lssgen.engines.base import Backend
from lssgen.runtime.options import Options


def search(args: argparse.Namespace, bundle: Bundle, backend: Backend, output: Path) -> None:
    """Search as the flags have it.

    Raises:
        LssgenError: See `lssgen.calibration.schedules.search_schedules`.
    """
    config = ScheduleConfig(**given(args, ScheduleConfig))
    runs = RangesConfig(**given(args, RangesConfig))
    judge = judge_of(config.judge)
    found = search_schedules(
        SearchJob(
            bundle=bundle,
            backend=backend,
            prompts=read_prompts(runs.prompts, runs.limit or SCHEDULE_PROMPTS),
            judge=judge,
            output=output,
            seed=runs.seed,
            tries=config.tries,
            options=Options(**given_plan_options(args)),
            install=config.install,
        )
    )
    print(markdown(found, judge.name))
    write_plot(found, judge.name, output.with_suffix(".png"))
    print(f"results and plot: {output}, {output.with_suffix('.png')}")
