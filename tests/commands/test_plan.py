import json
import subprocess
import sys
from pathlib import Path

import pytest

from lssgen.commands.plan import build_parser, main
from lssgen.commands.plan_options import given_plan_options
from lssgen.models.aliases import ALIASES
from lssgen.plan import PlanOptions, SkipLayerGuidance, make_plan, predicted_speedup


def options_of(flags: str, model: str = "sd3") -> PlanOptions:
    """What flags ask of a model."""
    given = given_plan_options(build_parser().parse_args(flags.split()))
    return PlanOptions.from_defaults(ALIASES[model].facts().defaults, **given)


PUBLISHED = [name for name, alias in ALIASES.items() if not alias.local]


@pytest.mark.parametrize("model", PUBLISHED)
def test_every_alias_is_printed(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", model]) == 0
    assert capsys.readouterr().out.startswith(f"{model}: ")


def test_a_hand_off_that_would_leave_nothing_of_a_stage_is_told_and_the_plan_printed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of schnell's four steps the later stage has all at this level: its noise is pure."""
    assert main(["--model", "flux-schnell", "--start-sigma", "0.9"]) == 0
    assert "--hand-off auto: not possible" in capsys.readouterr().out


def test_the_table_says_what_happens_in_every_stage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", "sd3", "--size", "1024", "--steps", "40", "--shorten"]) == 0
    lines = capsys.readouterr().out.splitlines()
    head, first, second, total = (line.split() for line in lines[2:6])
    assert head == ["stage", "pixels", "tokens", "steps", "cached", "of", "sigma", "noise", "TFLOP", "cost"]
    assert first[:8] == ["1", "512", "x", "512", "1024", "20", "0", "20"]
    assert second[:13] == ["2", "1024", "x", "1024", "4096", "21", "0", "40", "0.7606", "to", "0.0089", "0.7606", "374"]
    assert total[:2] == ["41", "0"]
    assert "Predicted speed-up over one stage at full size: 1.55" in lines[7]


def test_cached_steps_are_counted_apart_from_those_that_are_evaluated(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", "sd3", "--steps", "40", "--cached-steps", "medium", "--start-sigma", "1"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[3][5:8] == ["22", "18", "40"]
    assert main(["--model", "sd3", "--steps", "40", "--cached-steps", "medium", "--start-sigma", "1", "--json"]) == 0
    (stage,) = json.loads(capsys.readouterr().out)["plan"]["stages"]
    assert sum(len(step["cached"]) for step in stage["steps"]) == 18


@pytest.mark.parametrize(
    ("flags", "share"),
    [
        ("--model flux-schnell", "49%"),
        ("--model z-image-turbo --start-sigma 0.9", "6%"),
        ("--model z-image-turbo", None),
        ("--model sd3", None),
        ("--model flux-schnell --start-sigma 1", None),
    ],
)
def test_stages_that_do_not_pay_are_told(flags: str, share: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    """Four steps whose later stage repeats three of them save half a step."""
    assert main(flags.split()) == 0
    out = capsys.readouterr().out
    assert ("Stages do not pay here" in out) == (share is not None)
    assert share is None or f"they save {share} of one step at full size" in out


def test_json_holds_every_step_and_the_speed_up(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main(["--model", "flux-dev", "--json"]) == 0
    found = json.loads(capsysbinary.readouterr().out)
    facts = ALIASES["flux-dev"].facts()
    plan = make_plan(facts, PlanOptions.from_defaults(facts.defaults))
    assert [len(stage["steps"]) for stage in found["plan"]["stages"]] == [25, 25]
    assert found["plan"]["stages"][1]["steps"][0]["label"] == plan.stages[1].steps[0].label
    assert found["predicted_speedup"] == predicted_speedup(plan, facts)
    assert (found["solver"], found["options"]["num_inference_steps"]) == ("euler", 50)


def test_flags_become_options() -> None:
    flags = (
        "--size 1280x768 --steps 30 --guidance-scale 4 --start-sigma 0.6 --min-resolution 256 --no-shorten "
        "--base-size 512x640 --scaling-space latent --solver dpm++2m --sigmas 1,0.5,0.2 --skip-layer-guidance "
        "--skip-stop 0.3 --skip-window first --start-rule sigma --injection sigma --no-token-clamp --pndm aligned"
    )
    options = options_of(flags, "flux-dev")
    assert (options.width, options.height, options.base_width, options.base_height) == (1280, 768, 512, 640)
    assert (options.num_inference_steps, options.guidance_scale, options.start_sigma) == (30, 4.0, 0.6)
    assert (options.min_resolution, options.shorten, options.scaling_space) == (256, False, "latent")
    assert (options.solver, options.sigmas) == ("dpm++2m", (1.0, 0.5, 0.2))
    assert options.skip_layers is not None
    assert (options.skip_layers.scale, options.skip_layers.stop, options.skip_layers.window) == (2.8, 0.3, "first")
    assert (options.start_rule, options.injection, options.token_clamp, options.pndm) == (
        "sigma",
        "sigma",
        False,
        "aligned",
    )


def test_height_and_width_win_over_size() -> None:
    for flags in ("--size 1024 --width 512", "--width 512 --size 1024"):
        assert (options_of(flags).width, options_of(flags).height) == (512, 1024)


def test_words_of_diffusers_are_flags_too() -> None:
    options = options_of("--num-inference-steps 7 --true-cfg-scale 2")
    assert options == options_of("--steps 7 --true-guidance-scale 2")
    assert (options.num_inference_steps, options.true_cfg_scale) == (7, 2.0)


@pytest.mark.parametrize(
    ("flags", "skipping"),
    [
        ("", None),
        ("--no-skip-layer-guidance --skip-scale 2", None),
        ("--skip-layer-guidance", SkipLayerGuidance()),
        ("--skip-scale 2", SkipLayerGuidance(scale=2.0)),
    ],
)
def test_any_number_of_skip_layer_guidance_turns_it_on(flags: str, skipping: SkipLayerGuidance | None) -> None:
    assert options_of(flags).skip_layers == skipping


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--model sd33", "UnknownModelError: sd33 is neither a folder .*did you mean sd3?"),
        ("--model sd3 --size 500", "PlanError: 500 x 500 px is below min_resolution"),
        ("--bundle /nowhere", "BundleError: /nowhere is not a bundle"),
    ],
)
def test_a_refusal_is_one_line_and_an_exit_status(flags: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(flags.split()) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("lssgen-plan: ")
    assert words.split(": ")[0] in error
    assert words.split(": ")[1].split(" .*")[0] in error


def test_planning_needs_no_heavy_library() -> None:
    """Nothing of the export side, and no engine."""
    heavy = ["torch", "diffusers", "transformers", "onnx", "onnxruntime", "huggingface_hub", "PIL"]
    code = f"""
import sys
sys.modules.update(dict.fromkeys({heavy}))
from lssgen.commands.plan import main
sys.exit(main(["--model", "sd3", "--json"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert json.loads(done.stdout)["model"] == "sd3"


def test_a_bundle_is_found_by_its_name_as_everywhere(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """LSSGEN_HOME may come as it was written in a file that no shell has read."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LSSGEN_HOME", "~/home")
    (tmp_path / "home/bundles").mkdir(parents=True)
    (tmp_path / "home/bundles/mine").symlink_to(toy)
    assert main(["--bundle", "mine"]) == 0
    assert capsys.readouterr().out.startswith("toy: ")
