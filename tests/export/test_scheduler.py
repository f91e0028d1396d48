"""The scheduler is chosen at export too; graphs do not depend on it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from lssgen.commands.export import build_parser, main
from lssgen.errors import PlanError
from lssgen.export.config import ExportConfig
from lssgen.export.export import export
from lssgen.plan import PlanOptions, SchedulerChoice, make_plan
from lssgen.plan.sampling import sampling_of


def test_the_chosen_scheduler_is_the_bundles_own_and_no_graph_is_written_again(
    config: ExportConfig, written: list[str]
) -> None:
    plain = export(config).manifest
    made = list(written)
    chosen = replace(config, scheduler=SchedulerChoice.from_text("unipc"), sigma_schedule="karras")
    manifest = export(chosen).manifest
    assert written == made
    assert manifest.graphs == plain.graphs
    assert sampling_of(plain.facts).name == "euler"
    assert sampling_of(manifest.facts).name == "unipc"
    assert (
        "Sampled with FlowMatchEulerDiscreteScheduler, solver unipc, shift 3, karras sigmas, as asked."
        in manifest.notes
    )
    asked = PlanOptions.from_defaults(plain.facts.defaults, scheduler="unipc-karras", min_resolution=64)
    own = PlanOptions.from_defaults(plain.facts.defaults, min_resolution=64)
    assert make_plan(manifest.facts, own).stages == make_plan(plain.facts, asked).stages


@pytest.mark.parametrize("kind", ["DPMSolverSDEScheduler", "FlowMatchEulerDiscreteScheduler"])
def test_a_folder_whose_scheduler_cannot_be_reproduced_has_a_way_out(
    config: ExportConfig, written: list[str], sd3: Path, tmp_path: Path, kind: str
) -> None:
    folder = shutil.copytree(sd3, tmp_path / "sampled")
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "_class_name": kind, "invert_sigmas": True}))
    with pytest.raises(PlanError, match=r"cannot (be )?reproduce"):
        export(replace(config, model=str(folder)))
    assert written == []
    way_out = SchedulerChoice.from_text(str(sd3 / "scheduler"))
    assert export(replace(config, model=str(folder), scheduler=way_out)).manifest.facts.scheduler.startswith(
        "FlowMatch"
    )


def test_a_scheduler_of_another_kind_of_model_is_refused_before_anything_is_written(
    config: ExportConfig, written: list[str]
) -> None:
    with pytest.raises(PlanError, match="'ddim' does not fit"):
        export(replace(config, scheduler=SchedulerChoice(solver="ddim")))
    assert written == []


def test_the_command_takes_it(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", "demo", "--scheduler", "unipc-karras", "--timestep-spacing", "trailing"]
    args = build_parser().parse_args(words)
    assert (args.scheduler, args.timestep_spacing) == (
        SchedulerChoice(solver="unipc", sigma_schedule="karras"),
        "trailing",
    )
    with pytest.raises(SystemExit):
        main(["--model", "demo", "--scheduler", "/nowhere/at all"])
    assert "/nowhere/at all cannot be read (No such file or directory)" in capsys.readouterr().err
