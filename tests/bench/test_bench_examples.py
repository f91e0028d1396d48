"""The example for GitHub Actions: what it calls can be called."""

import re
import shlex
from pathlib import Path

import yaml

from lssgen.bench.sides import side_from_text
from lssgen.commands.bench import build_parser

WORKFLOW = Path(__file__).parents[2] / "examples" / "ci" / "latency.yml"


def test_its_commands_parse_and_its_sides_are_sides(tmp_path: Path) -> None:
    jobs = yaml.safe_load(WORKFLOW.read_text())["jobs"]
    lines = [step["run"] for job in jobs.values() for step in job["steps"] if "lssgen-bench" in step.get("run", "")]
    assert len(lines) == 2
    for line in lines:
        words = shlex.split(line.replace("$BUNDLE", "/srv/bundles/sd3"))
        args = build_parser().parse_args(words[1:])
        assert args.action in ("exact", "compare")
    for name in ("base", "head"):
        (tmp_path / name / "lssgen").mkdir(parents=True)
        (tmp_path / name / "lssgen" / "__init__.py").touch()
    for side in re.findall(r'"(\$BUNDLE[^"]*)"', lines[1]):
        made = side_from_text(side.replace("code=", f"code={tmp_path}/"))
        assert made.engine == "tensorrt"


def test_the_baseline_that_it_names_is_there() -> None:
    (path,) = re.findall(r"--baseline (\S+)", WORKFLOW.read_text())
    assert (WORKFLOW.parents[2] / path).exists()
