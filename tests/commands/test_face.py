"""One command, one face: laws over every command and every option of it."""

import argparse
import re
import shlex
import subprocess
import sys
from importlib import import_module

import pytest

from lssgen import cli
from lssgen.commands import COMMANDS
from lssgen.commands.parser import Parser


def parser_of(command: str) -> Parser:
    return import_module(f"lssgen.commands.{command.replace('-', '_')}").build_parser()


def options_of(command: str) -> list[argparse.Action]:
    return [action for action in parser_of(command)._actions if action.dest != "help"]


OPTIONS = [(command, action) for command in COMMANDS for action in options_of(command)]
NAMES = [f"{command} {(action.option_strings or [action.dest])[0]}" for command, action in OPTIONS]


@pytest.mark.parametrize(("command", "action"), OPTIONS, ids=NAMES)
def test_every_option_says_its_default_or_that_it_is_needed(command: str, action: argparse.Action) -> None:
    del command
    said = action.help or ""
    is_switch = action.nargs == 0 and not isinstance(action, argparse.BooleanOptionalAction)
    assert is_switch or re.search(r"default: ?\S|required", said), said
    assert not said.endswith("default: None")
    assert "==SUPPRESS==" not in said


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_ends_in_two_examples_that_parse(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = parser_of(command)
    assert len(parser.examples) == 2
    for example in parser.examples:
        parser.parse_args(shlex.split(example))
    with pytest.raises(SystemExit, match="0"):
        parser.parse_args(["--help"])
    text = capsys.readouterr().out
    assert all(f"  lssgen-{command} {example}\n" in text for example in parser.examples)
    assert len(text.split("\n\n")[0].splitlines()) == 1  # the usage


@pytest.mark.parametrize("command", COMMANDS)
def test_no_option_can_be_abbreviated_and_a_slip_is_told_its_neighbour(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    known = {name for action in options_of(command) for name in action.option_strings}
    for name in sorted(known):
        slip = name[:-1]
        if len(slip) < 5 or slip in known:
            continue
        with pytest.raises(SystemExit, match="2"):
            parser_of(command).parse_args([slip, "1"])
        (line,) = capsys.readouterr().err.splitlines()
        told = re.fullmatch(
            rf"lssgen-{command}: {slip} is not an option; did you mean (--[\w-]+)\? see lssgen-{command} --help", line
        )
        assert told, line
        assert told[1] in known


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("plan --steps", "--steps/--num-inference-steps needs a value;"),
        ("plan --steps many", "--steps/--num-inference-steps: 'many' is not a whole number;"),
        ("plan --eta much", "--eta: 'much' is not a number;"),
        ("plan --size 1024x", "--size: '1024x' is not a size; write 1024, or 1280x768 for width x height;"),
        ("plan --pndm aligne", "--pndm: there is no 'aligne'; did you mean aligned?"),
        ("plan sd3", "sd3 is one word too many;"),
        ("train-upsampler --vae x", "--images is needed;"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_came(words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    command, *flags = words.split()
    with pytest.raises(SystemExit, match="2"):
        cli.main([command, *flags])
    assert capsys.readouterr().err == f"lssgen {command}: {said} see lssgen {command} --help\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_both_forms_name_themselves(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    main = import_module(f"lssgen.commands.{command.replace('-', '_')}").main
    with pytest.raises(SystemExit, match="2"):
        main(["--stpes"])
    with pytest.raises(SystemExit, match="2"):
        cli.main([command, "--stpes"])
    one, other = capsys.readouterr().err.splitlines()
    assert one.startswith(f"lssgen-{command}: --stpes is not an option")
    assert other.startswith(f"lssgen {command}: --stpes is not an option")


def test_the_face_lists_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["--help"], ["-h"]):
        assert cli.main(words) == 0
        out = capsys.readouterr().out
        assert all(re.search(rf"^  {name} +{re.escape(does)}$", out, re.MULTILINE) for name, does in COMMANDS.items())
        for example in re.findall(r"^  lssgen (.*)$", out, re.MULTILINE):
            command, *flags = shlex.split(example)
            parser_of(command).parse_args(flags)


@pytest.mark.parametrize(
    ("word", "advice"), [("exprot", "did you mean export? see lssgen --help"), ("?", "there are run, encode, plan,")]
)
def test_an_unknown_command_is_one_line(word: str, advice: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([word, "--steps", "3"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"lssgen: {word} is not a command; ")
    assert advice in line


def test_it_runs_as_a_module_and_imports_nothing_of_weight_before_a_command_is_chosen() -> None:
    code = (
        "import sys, runpy; sys.argv = ['lssgen', '--version']\n"
        "try: runpy.run_module('lssgen', run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0\n"
        "print([name for name in ('numpy', 'msgspec', 'PIL', 'tqdm', 'onnxruntime', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    version, heavy = done.stdout.splitlines()
    assert re.fullmatch(r"lssgen \d+\.\d+\.\d+\S*", version)
    assert heavy == "[]"


@pytest.mark.parametrize("command", ["export", "train-upsampler", "build"])
def test_explaining_a_command_needs_no_torch(command: str) -> None:
    code = (
        f"import sys; sys.modules.update(dict.fromkeys(['torch', 'diffusers', 'transformers']))\n"
        f"from lssgen.cli import main; main([{command!r}, '--help'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: lssgen {command} ")
