"""lssgen bench and its actions, from words to exit status."""

import json
import re
import shlex
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest

from lssgen.bench.cases import Case, Effort
from lssgen.bench.measure import measure
from lssgen.bench.results import CaseResult, read_result
from lssgen.bundle import Bundle, read_bundle
from lssgen.commands.bench import ACTIONS, action_parser, main
from lssgen.commands.bench.measuring import read_quality
from lssgen.commands.plan import main as plan_main
from lssgen.errors import BenchError, EngineError
from lssgen.measured import all_measured
from lssgen.models.aliases import facts_of_model
from lssgen.plan import PlanOptions, make_plan

QUICK = ["--runs", "3", "--warmup", "1", "--threads", "1", "--set", "scaling_space=latent", "--prompt", "a red circle"]
SET = ", scaling_space latent"
"""What the option of `QUICK` adds to the name of a case."""


def cases_in(path: Path) -> list[str]:
    return [case.name.removesuffix(SET) for case in read_result(path).cases]


def plan_of_demo(options: dict[str, Any]) -> None:
    """An example that the demo model cannot carry out is none."""
    facts = facts_of_model("demo")
    make_plan(facts, PlanOptions.from_defaults(facts.defaults, **options))


@pytest.mark.parametrize("action", ACTIONS)
def test_every_option_of_an_action_says_its_default_or_that_it_is_needed(
    action: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = action_parser(action, f"lssgen bench {action}")
    for option in parser._actions:
        is_switch = option.nargs == 0
        assert is_switch or re.search(r"default: ?\S|required", option.help or ""), option
    assert len(parser.examples) == 2
    for example in parser.examples:
        args = parser.parse_args(shlex.split(example))
        if action == "exact" and not args.update:
            assert (Path(__file__).parents[2] / args.baseline).is_file()
        if getattr(args, "bundle", getattr(args, "a", "")) == "demo":
            plan_of_demo(dict(getattr(args, "set", ())))
    with pytest.raises(SystemExit, match="0"):
        main([action, "--help"])
    assert ACTIONS[action] in capsys.readouterr().out


def test_a_bundle_is_measured_into_a_table_a_file_a_history_and_plots(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, quality = tmp_path / "r.json", tmp_path / "q.csv"
    quality.write_text('case,quality\n"64x64, batch 1, staged, scaling_space latent",0.9\n')
    words = [str(toy), *QUICK, "--sizes", "32,64", "--single", "-o", str(out), "--history", str(tmp_path / "h.jsonl")]
    words += ["--plots", str(tmp_path / "plots"), "--quality", str(quality), "--label", "c1", "--quiet"]
    assert main(words) == 0
    assert "64x64, batch 1, one stage" in capsys.readouterr().out
    assert cases_in(out) == [
        "32x32, batch 1, staged", "32x32, batch 1, one stage", "64x64, batch 1, staged", "64x64, batch 1, one stage",
    ]  # fmt: skip
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {"stages.png", "cost.png", "quality.png"}
    assert len((tmp_path / "h.jsonl").read_text().splitlines()) == 4
    before = out.read_bytes()
    assert main(words) == 0  # it goes on with what is there: nothing is measured again
    assert json.loads(out.read_bytes())["cases"] == json.loads(before)["cases"]
    assert len((tmp_path / "h.jsonl").read_text().splitlines()) == 4  # and nothing is in the history twice


def test_a_measurement_that_dies_half_way_keeps_its_cases_and_goes_on(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, asked = tmp_path / "r.json", list[str]()

    def dying(bundle: Bundle, opened: Any, case: Case, effort: Effort, **words: Any) -> CaseResult:
        asked.append(case.name)
        if len(asked) == 2:
            raise EngineError("out of memory")
        return measure(bundle, opened, case, effort, **words)

    monkeypatch.setattr("lssgen.bench.measure.measure", dying)
    words = [str(toy), *QUICK, "--sizes", "32,64", "-o", str(out), "--quiet"]
    assert main(words) == 1
    assert "out of memory" in capsys.readouterr().err
    assert cases_in(out) == ["32x32, batch 1"]
    assert main(words) == 0
    assert [name.removesuffix(SET) for name in asked] == ["32x32, batch 1", "64x64, batch 1", "64x64, batch 1"]
    assert len(read_result(out).cases) == 2


def test_engines_are_a_side_of_the_grid(toy: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    words = [str(toy), *QUICK, "--on", "onnxruntime,openvino", "-o", str(out), "--quiet"]
    assert main([*words, "--low-memory"]) == 0
    assert cases_in(out) == ["batch 1, onnxruntime", "batch 1, openvino"]
    assert read_result(out).engine == "onnxruntime, openvino"
    assert main([str(toy), *QUICK, "--on", "abacus", "--quiet"]) == 1


def test_a_prompt_that_is_too_long_is_told_once_and_not_for_every_run(
    toy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(toy), *QUICK[:-2], "--prompt", "a red circle beside a blue star on a white background", "--quiet"]
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert main(words) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("lssgen-bench: warning: prompt too long: the encoder behind 'ids' reads 8 tokens")


def test_other_cases_are_added_to_a_file_and_those_in_it_stay(toy: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    words = [str(toy), *QUICK, "-o", str(out), "--quiet"]
    assert main([*words, "--sizes", "32"]) == 0
    assert main([*words, "--sizes", "64,64"]) == 0  # and a size that is named twice is measured once
    assert cases_in(out) == ["64x64, batch 1", "32x32, batch 1"]


def test_a_case_that_is_measured_anew_costs_none_of_the_others(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "r.json"
    words = [str(toy), *QUICK, "--sizes", "32,64", "-o", str(out), "--quiet"]
    assert main(words) == 0
    asked = list[str]()

    def dying(bundle: Bundle, opened: Any, case: Case, effort: Effort, **words: Any) -> CaseResult:
        asked.append(case.name)
        if len(asked) == 2:
            raise EngineError("out of memory")
        return measure(bundle, opened, case, effort, **words)

    monkeypatch.setattr("lssgen.bench.measure.measure", dying)
    assert main([*words, "--runs", "4"]) == 1
    assert [(len(case.latencies_ms), case.stages[-1].width_px) for case in read_result(out).cases] == [(4, 32), (3, 64)]


def test_a_measurement_with_other_prompts_is_another_one(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "r.json"
    assert main([str(toy), *QUICK, "-o", str(out), "--quiet"]) == 0
    assert main([str(toy), *QUICK, "-o", str(out), "--quiet", "--prompt", "a blue star"]) == 1
    assert "its prompt is 'a red circle', and this is 'a blue star'; choose another" in capsys.readouterr().err


@pytest.fixture
def no_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        pytest.fail("it was measured")

    monkeypatch.setattr("lssgen.commands.bench.measuring.measure_all", never)


@pytest.mark.usefixtures("no_measuring")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--sizes", "32,8"], "8 x 8 px is below min_resolution"),
        (["--on", "onnxruntime,abacus"], "there is no engine called 'abacus'"),
        (["--set", "seed=1", "--set", "seed=2"], "--set says one of its options twice"),
        (["--set", "batch=2"], "batch is a side of the grid; say it with --batches alone"),
        (["--set", "num_images=2"], "num_images is a side of the grid; say it with --batches alone"),
        (["--sizes", "32", "--set", "height=64"], "height is a side of the grid; say it with --sizes alone"),
        (["--steps", "4", "--set", "num_inference_steps=5"], "say it with --steps alone"),
        (["-o", "FILE/r.json"], "FILE/r.json cannot be written: "),
        (["-o", "FOLDER"], "FOLDER cannot be written: it is a folder"),
        (["--history", "FILE/h.jsonl"], "FILE/h.jsonl cannot be written: "),
        (["--plots", "FILE"], "FILE cannot be written: "),
        (["--quality", "FILE"], "--quality is for a plot; say where with --plots DIR"),
        (["--plots", "FOLDER", "--quality", "FILE"], "FILE has none of the cases that are measured: batch 1"),
    ],
)
def test_what_cannot_come_to_a_good_end_is_told_before_anything_is_measured(
    toy: Path, tmp_path: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "FILE").write_text("case,quality\nnone,1\n")
    (tmp_path / "FOLDER").mkdir()
    placed = [
        word.replace("FILE", str(tmp_path / "FILE")).replace("FOLDER", str(tmp_path / "FOLDER")) for word in words
    ]
    assert main([str(toy), *QUICK, *placed, "--quiet"]) == 1
    (line,) = capsys.readouterr().err.replace(f"{tmp_path}/", "").splitlines()
    assert said in line
    assert {path.name for path in tmp_path.iterdir()} <= {"FILE", "FOLDER"}


@pytest.mark.usefixtures("no_measuring")
def test_plots_without_matplotlib_are_refused_before_anything_is_measured(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lssgen.bench.plots.find_spec", lambda _: None)
    assert main([str(toy), *QUICK, "--plots", str(tmp_path), "--quiet"]) == 1
    assert 'plots need matplotlib: pip install "lssgen[bench]"' in capsys.readouterr().err


@pytest.fixture
def baseline(toy: Path, tmp_path: Path) -> Path:
    path = tmp_path / "before.json"
    assert main([str(toy), *QUICK, "-o", str(path), "--quiet"]) == 0
    return path


@pytest.mark.parametrize(("factor", "status", "said"), [(1e-6, 9, "FAIL"), (1e6, 0, "PASS")])
def test_a_baseline_of_the_same_machine_is_held(
    toy: Path, baseline: Path, factor: float, status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = json.loads(baseline.read_text())
    whole["cases"][0]["request_latency_ms"]["p50"] *= factor
    baseline.write_text(json.dumps(whole))
    assert main([str(toy), *QUICK, "--baseline", str(baseline), "--status", "9", "--quiet"]) == status
    assert f"{said}  batch 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("environment", "machine", "cpu"), "abacus", "machine cpu was abacus and is"),
        (("environment", "software", "lssgen"), "0.0.1", "software lssgen was 0.0.1 and is"),
        (("environment", "backend", "threads"), "64", "backend threads was 64 and is 1"),
        (
            ("environment", "machine", "gpu.driver_version"),
            "560.1",
            "machine gpu.driver_version was 560.1 and is absent",
        ),
        (("bundle", "manifest_sha256"), "0" * 64, "its bundle is toy 000000000000, and this is toy"),
        (("engine",), "tensorrt", "its engine is tensorrt, and this is onnxruntime"),
        (("format",), 7, "has format 7"),
    ],
)
def test_a_baseline_of_another_machine_bundle_or_version_is_refused_before_anything_is_measured(
    toy: Path, baseline: Path, place: tuple[str, ...], value: object, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = json.loads(baseline.read_text())
    part = whole
    for name in place[:-1]:
        part = part[name]
    part[place[-1]] = value
    baseline.write_text(json.dumps(whole))
    assert main([str(toy), *QUICK, "--baseline", str(baseline), "--quiet"]) == 1
    streams = capsys.readouterr()
    assert said in streams.err
    assert len(streams.err.splitlines()) == 1
    assert "p50" not in streams.out


def test_a_baseline_whose_engines_were_compiled_otherwise_is_refused(
    toy: Path, baseline: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Known only when the case has run: which engine computes a component is chosen, or built, by then."""
    whole = json.loads(baseline.read_text())
    whole["cases"][0]["backend"]["engines"] = "{'step': '0123'}"
    baseline.write_text(json.dumps(whole))
    assert main([str(toy), *QUICK, "--baseline", str(baseline), "--quiet"]) == 1
    assert "of other engines: engine's engines was {'step': '0123'} and is absent" in capsys.readouterr().err


def test_a_baseline_without_a_case_or_with_other_options_is_refused_before_anything_is_measured(
    toy: Path, baseline: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lssgen.commands.bench.measuring.measure_all", lambda *_, **__: pytest.fail("it was measured"))
    for words in (["--sizes", "32"], ["--set", "guidance_scale=1"]):
        assert main([str(toy), *QUICK, *words, "--baseline", str(baseline), "--quiet"]) == 1
        said = capsys.readouterr().err
        assert f"{baseline} has no case" in said
        assert f"but batch 1{SET}; measure the same cases for it" in said
    assert main([str(toy), *QUICK, "--prompt", "a", "--baseline", str(baseline), "--quiet"]) == 1
    assert "its prompt is 'a red circle', and this is 'a'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("request_latency_ms", "p50"), 0.0),
        (("request_latency_ms", "count"), 0),
        (("image_latency_ms", "p50"), -1.0),
        (("batch",), 0),
        (("stages",), []),
    ],
)
def test_a_baseline_with_impossible_numbers_is_damaged(
    toy: Path, baseline: Path, place: tuple[str, ...], value: object, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = json.loads(baseline.read_text())
    part = whole["cases"][0]
    for name in place[:-1]:
        part = part[name]
    part[place[-1]] = value
    baseline.write_text(json.dumps(whole))
    assert main([str(toy), *QUICK, "--baseline", str(baseline), "--quiet"]) == 1
    assert f"{baseline} is damaged" in capsys.readouterr().err


def test_a_damaged_baseline_is_told(toy: Path, baseline: Path, capsys: pytest.CaptureFixture[str]) -> None:
    baseline.write_text(baseline.read_text()[:-50])
    assert main([str(toy), *QUICK, "--baseline", str(baseline), "--quiet"]) == 1
    assert f"{baseline} is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--runs", "2"], "2 is too small; give 3 or more"),
        (["--set", "steps"], "'steps' is not NAME=VALUE"),
        (["compare", "demo", "--rounds", "3"], "3 is too small; give 8 or more"),
        (["loadgen", "demo", "--qps", "0"], "0 is too small"),
    ],
)
def test_words_that_make_no_sense_are_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(words)
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_an_unknown_option_of_a_run_is_told_its_neighbour(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(toy), "--set", "start_sigme=1", "--quiet"]) == 1
    assert "unknown option 'start_sigme'; did you mean 'start_sigma'?" in capsys.readouterr().err


def test_the_exact_gate_is_made_passed_and_broken(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, words = tmp_path / "b.json", ["exact", str(toy), "--set", "scaling_space=latent", "--prompt", "a red circle"]
    assert main([*words, "--baseline", str(path), "--update"]) == 0
    whole = json.loads(path.read_text())
    whole["ratios"] = {}  # no timing in tests
    path.write_text(json.dumps(whole))
    assert main([*words, "--baseline", str(path)]) == 0
    whole["exact"]["stages"] = 3
    path.write_text(json.dumps(whole))
    assert main([*words, "--baseline", str(path), "--status", "6"]) == 6
    assert "stages was 3 and is 2" in capsys.readouterr().out
    assert main(["exact", "--model", "sd3"]) == 0
    assert "stage 1 MFLOP" in capsys.readouterr().out
    assert main(["exact", "--model", "sd3", "--set", "seed=3"]) == 1
    assert "seed changes pictures and not the plan, which is all that --model has" in capsys.readouterr().err
    assert main(["exact", "--update"]) == 1
    assert main(["exact", str(toy), "--model", "sd3"]) == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a,b\n1,2\n", "needs a column case"),
        ("case,quality\nx,y\n", "needs a column"),
        ("case,quality\nx,nan\n", "gives 'x' a quality that is not finite"),
        (f"case,quality\n{'x' * 200_000},1\n", "needs a column"),
    ],
)
def test_a_quality_file_that_cannot_be_used_is_told(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "q.csv").write_text(text)
    with pytest.raises(BenchError, match=said):
        read_quality(tmp_path / "q.csv")
    with pytest.raises(BenchError, match="cannot be read"):
        read_quality(tmp_path / "none.csv")


def test_loadgen_measures_a_bundle(toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["loadgen", str(toy), "--threads", "1", "--set", "scaling_space=latent", "--prompt", "a red circle"]
    assert main([*words, "--outdir", str(tmp_path)]) == 0
    assert "Result is: VALID" in capsys.readouterr().out


def test_a_guarantee_is_written_explained_and_forgotten(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(toy, tmp_path / "toy")
    words = [
        "guarantee",
        str(folder),
        "--threads",
        "1",
        "--set",
        "scaling_space=latent",
        "--prompt",
        "a red",
        "--sizes",
        "64",
    ]
    assert main([*words, "--pairs", "6"]) == 0
    assert "onnxruntime, 64 x 64 px: stages take" in capsys.readouterr().out
    assert main([*words[:-1], "32,128", "--pairs", "6"]) == 0  # other sizes, beside what is there
    assert "32x32: one stage anyway" in capsys.readouterr().out
    (known,) = all_measured(read_bundle(folder)).values()
    assert [one.width for one in known.guarantees] == [64, 128]
    assert (folder / "measured.json").exists()
    assert plan_main(["--bundle", str(folder), "--scaling-space", "latent"]) == 0
    assert re.search(r"Predicted from times of onnxruntime with 1 threads on .* times as fast", capsys.readouterr().out)
    assert main([*words, "--forget"]) == 0
    assert not (folder / "measured.json").exists()
