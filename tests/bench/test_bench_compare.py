"""Two sides in fresh processes: verdicts, exit codes, and processes that die."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lssgen.bench import duel
from lssgen.bench.duel import Duel, Round, Terms, compare, read_duel, rounds_to_go_on, write_duel
from lssgen.bench.sides import Side, painter, side_from_text, value_of
from lssgen.commands.bench import main
from lssgen.errors import BenchError, MismatchError, PlanError

PACKAGE = '''
"""Another checkout: a library with one function, that sleeps as long as the bundle's name says."""
import os, sys, time
from types import SimpleNamespace
__file__ = __file__

class Image:
    def tobytes(self):
        return b"x"

class Pipeline:
    backend = SimpleNamespace(describe=lambda: {"backend": "sleeping"})
    def __init__(self, bundle):
        self.painted, self.bundle = 0, bundle
    def __call__(self, prompt, **options):
        self.painted += 1
        if options.get("seed") == self.painted:
            print("out of luck", file=sys.stderr, flush=True)
            os._exit(7)
        time.sleep(options.get("guidance_scale", 1.0) / 1000)
        return SimpleNamespace(images=[Image()])

def load(bundle, engine="", **words):
    print("a library that prints")
    return Pipeline(bundle)
'''


@pytest.fixture
def code(tmp_path: Path) -> Path:
    (tmp_path / "checkout" / "lssgen").mkdir(parents=True)
    (tmp_path / "checkout" / "lssgen" / "__init__.py").write_text(PACKAGE)
    return tmp_path / "checkout"


def side(code: Path, milliseconds: float, **options: Any) -> Side:
    more = "".join(f",{name}={value}" for name, value in options.items())
    return side_from_text(f"any,code={code},guidance_scale={milliseconds}{more}")


QUICK = Terms(rounds=8, blocks=1, margin=0.5)


@pytest.mark.parametrize(("slower", "said"), [(2.0, "FAIL"), (0.5, "PASS"), (1.0, "PASS"), (1.5, "UNDECIDED")])
def test_a_verdict_is_that_of_the_rounds_that_were_painted(
    code: Path, monkeypatch: pytest.MonkeyPatch, slower: float, said: str
) -> None:
    """Rounds with times of their own: what a busy machine makes of real ones is not this test's matter."""
    noise = np.random.default_rng(0)

    def painted(*_: object, **__: object) -> tuple[Round, dict[str, str]]:
        a, b = (tuple(one * float(np.exp(noise.normal(0, 0.05))) for _ in range(4)) for one in (1.0, slower))
        return Round(a=a, b=b, load_a=1.0, load_b=1.0), {}

    monkeypatch.setattr(duel, "_round", painted)
    found = compare(side(code, 1), side(code, 1), QUICK)
    assert found.verdict == said
    assert len(found.rounds) == 8


def test_every_round_paints_a_b_b_a_in_fresh_processes_and_the_first_takes_turns(code: Path) -> None:
    seen: list[int] = []
    found = compare(side(code, 1), side(code, 1), QUICK, on_round=lambda duel: seen.append(len(duel.rounds)))
    assert seen == list(range(1, len(found.rounds) + 1))
    assert all(len(one.a) == len(one.b) == 2 * QUICK.blocks for one in found.rounds)


def test_a_process_that_dies_half_way_is_told_with_its_last_words_and_the_rounds_before_stay(
    code: Path, tmp_path: Path
) -> None:
    kept: list[Duel] = []
    dying = side(code, 1, seed=3)
    with pytest.raises(BenchError, match=r"seed=3 died half-way: status 7: out of luck; run it again"):
        compare(side(code, 1), dying, QUICK, on_round=kept.append)
    assert main(["compare", f"any,code={code}", dying.text, "-o", str(tmp_path / "d.json")]) == 1


def test_a_side_that_cannot_be_opened_is_told_in_its_own_words(toy: Path) -> None:
    with pytest.raises(BenchError, match=r"cannot be run: BackendError: there is no engine called 'abacus'"):
        compare(side_from_text(f"{toy},engine=abacus"), side_from_text(str(toy)), QUICK)


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("", BenchError, "names no bundle"),
        ("demo,engine", BenchError, "'engine' is not NAME=VALUE"),
        ("demo,stepz=3", PlanError, "unknown option 'stepz'"),
        ("demo,code=/nowhere", BenchError, "/nowhere is not a checkout"),
        ("demo,seed=1,start_sigma=1,seed=2", BenchError, "says one of its options twice"),
    ],
)
def test_a_side_that_makes_no_sense_is_refused(text: str, error: type, said: str) -> None:
    with pytest.raises(error, match=said):
        side_from_text(text)


def test_a_side_tells_options_of_the_engine_from_those_of_the_run() -> None:
    found = side_from_text("demo,engine=openvino,threads=2,start-sigma=0.5,scaling_space=latent,shorten=true")
    assert (found.engine, found.words) == ("openvino", {"threads": 2})
    assert found.options == {"start_sigma": 0.5, "scaling_space": "latent", "shorten": True}


def test_truth_is_read_as_json_and_as_python_writes_it(toy: Path) -> None:
    for text, value in (("true", True), ("True", True), ("False", False), ("None", None), ("[1, 2]", [1, 2])):
        assert value_of(text) == value
    with pytest.raises(BenchError, match="low_memory is 'no'; it must be True or False"):
        compare(side_from_text(f"{toy},low_memory=no"), side_from_text(str(toy)), QUICK)


def test_a_process_that_is_killed_while_it_answers_is_told(code: Path) -> None:
    package = code / "lssgen" / "__init__.py"
    half = """os.write(3, b'{"seconds": 0.0'); os.kill(os.getpid(), 9)"""  # 3: where the worker's answers go
    package.write_text(package.read_text().replace("os._exit(7)", half))
    with pytest.raises(BenchError, match="gave half an answer: signal SIGKILL: out of luck; run it again: with -o"):
        compare(side(code, 1), side(code, 1, seed=2), QUICK)


@pytest.mark.parametrize("rounds", [0, 7])
def test_too_few_rounds_are_refused(rounds: int) -> None:
    with pytest.raises(BenchError, match=f"rounds is {rounds}; it must be at least 8"):
        Terms(rounds=rounds)


def test_the_exit_status_of_each_verdict_is_the_users(
    toy: Path, code: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same side twice: whatever the verdict is on a busy machine, its status is the one that was asked for."""
    words = ["compare", f"{toy},code={code}", "--expect-same", "--rounds", "8", "--blocks", "1"]
    out = tmp_path / "same.json"
    flags = ["--status-pass", "40", "--status-fail", "41", "--status-undecided", "42", "--prompt", "a red circle"]
    status = main([*words, *flags, "-o", str(out), "--quiet", "--margin", "0.2"])
    made = read_duel(out)
    assert status == {"PASS": 40, "FAIL": 41, "UNDECIDED": 42}[made.verdict]
    assert made.a == made.b
    assert capsys.readouterr().out.startswith(made.verdict)


def test_a_comparison_goes_on_where_it_was_stopped(code: Path, tmp_path: Path) -> None:
    a, b = side(code, 1), side(code, 4)
    whole = compare(a, b, QUICK)
    path = tmp_path / "d.json"
    write_duel(whole, path)
    known = rounds_to_go_on(path, a, b)
    assert known == whole.rounds
    asked: list[int] = []
    compare(a, b, QUICK, known=known, on_round=lambda duel: asked.append(len(duel.rounds)))
    assert asked == [8]


def test_rounds_of_other_sides_or_of_another_machine_are_refused(code: Path, tmp_path: Path) -> None:
    a, b = side(code, 1), side(code, 4)
    path = tmp_path / "d.json"
    write_duel(compare(a, b, QUICK), path)
    with pytest.raises(MismatchError, match="choose another file for this comparison"):
        rounds_to_go_on(path, b, a)
    said = json.loads(path.read_text())
    said["environment"]["machine"]["cpu"] = "abacus"
    path.write_text(json.dumps(said))
    with pytest.raises(MismatchError, match=r"another machine or version \(machine cpu differ\)"):
        rounds_to_go_on(path, a, b)
    path.write_text(path.read_text()[:-9])
    with pytest.raises(BenchError, match="is damaged"):
        rounds_to_go_on(path, a, b)


def test_rounds_of_another_bundle_engine_or_state_of_the_code_are_not_mixed_with_new_ones(
    code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sides are written alike; what they name has changed since."""
    monkeypatch.delenv("LSSGEN_ENGINE", raising=False)
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "manifest.json").write_text("{}")
    a = side_from_text(f"{tmp_path / 'bundle'},code={code}")
    path = tmp_path / "d.json"
    write_duel(compare(a, a, QUICK), path)
    assert len(rounds_to_go_on(path, a, a)) == 8
    with pytest.raises(MismatchError, match="before prompt changed"):
        rounds_to_go_on(path, a, a, "a blue square")
    (tmp_path / "bundle" / "manifest.json").write_text("{ }")
    with pytest.raises(MismatchError, match="before A's bundle and B's bundle changed, and rounds of"):
        rounds_to_go_on(path, a, a)
    (tmp_path / "bundle" / "manifest.json").write_text("{}")
    monkeypatch.setenv("LSSGEN_ENGINE", "onnxruntime")
    with pytest.raises(MismatchError, match="before A's engine and B's engine changed"):
        rounds_to_go_on(path, a, a)
    monkeypatch.delenv("LSSGEN_ENGINE")
    (code / "lssgen" / "more.py").write_text("import time")
    with pytest.raises(MismatchError, match="before A's code and B's code changed"):
        rounds_to_go_on(path, a, a)


def test_a_real_bundle_is_painted_by_this_checkout(toy: Path) -> None:
    with painter(side_from_text(f"{toy},threads=1,scaling_space=latent,seed=3")) as one:
        assert one.paint("a red circle") > 0
        assert one.load_s > 0
        assert one.describe["threads"] == "1"


def test_a_file_that_cannot_be_written_is_told_before_a_round_and_rounds_that_count_are_too(
    toy: Path, code: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["compare", f"{toy},code={code}", "--expect-same", "--rounds", "8", "--blocks", "1"]
    out = tmp_path / "same.json"
    assert main([*words, "-o", str(out), "--margin", "9"]) == 0
    assert "going on" not in capsys.readouterr().err
    monkeypatch.setattr(duel, "_round", lambda *_, **__: pytest.fail("it was measured"))
    assert main([*words, "-o", str(out), "--margin", "9"]) == 0
    assert f"going on with the 8 rounds in {out}" in capsys.readouterr().err
    assert main([*words, "-o", str(out / "x.json")]) == 1
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["compare", "demo"], ["compare", "demo", "demo", "--expect-same"]])
def test_one_side_or_three_make_no_comparison(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 1
    assert "takes A and B, or A with --expect-same" in capsys.readouterr().err
