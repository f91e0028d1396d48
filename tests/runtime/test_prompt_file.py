import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes import fake_pipeline

from lssgen.errors import PlanError, PromptError
from lssgen.measured import Guarantee, Measured, Ratio, place_of, write_measured
from lssgen.runtime.options import Options
from lssgen.runtime.prompt_file import PromptFolders, PromptLine, read_prompt_file
from lssgen.runtime.record import settings_from_file
from lssgen.runtime.results import Progress

TEXT = '{"prompt": "a red circle", "tag": "colors"}\n\n{"prompt": "a blue square"}\n'


def lines_of(folder: Path, text: str = TEXT) -> tuple[PromptLine, ...]:
    (folder / "prompts.jsonl").write_text(text, encoding="utf-8")
    return read_prompt_file(folder / "prompts.jsonl")[0]


def folders_in(folder: Path, **options: object) -> PromptFolders:
    merged = {"scaling_space": "latent", "num_images": 2, **options}
    return PromptFolders(fake_pipeline(folder / "bundle"), folder / "out", Options(**merged), ".png")  # type: ignore[typeddict-item]


def paint(folder: Path, lines: tuple[PromptLine, ...], **options: object) -> list[str]:
    """Paint what is missing; returns the folders that were painted."""
    with folders_in(folder, **options) as folders:
        return [line.folder for line, _ in folders.paint(folders.missing(lines), lambda _: None)]


def test_folders_are_laid_out_as_geneval_reads_them(tmp_path: Path) -> None:
    assert paint(tmp_path, lines_of(tmp_path)) == ["00000", "00002"]
    made = tmp_path / "out" / "00000"
    assert json.loads((made / "metadata.jsonl").read_text()) == {"prompt": "a red circle", "tag": "colors"}
    assert sorted(path.name for path in (made / "samples").iterdir()) == ["0000.png", "0001.png"]
    result = json.loads((made / "result.json").read_text())
    assert (result["n_sample"], result["batch_size"]) == (2, 1)
    assert result["time"] == pytest.approx(sum(batch["total"] - batch["load"] for batch in result["batches"]))


def test_the_record_says_one_stage_where_stages_were_measured_to_be_slower(tmp_path: Path) -> None:
    slow = Ratio(ratio=1.3, lower=1.2, upper=1.4, pairs=12)
    known = Guarantee(width=64, height=64, staged_over_single=slow)
    pipeline = fake_pipeline(tmp_path / "bundle")
    place = place_of(pipeline.backend.name, pipeline.backend.describe())
    write_measured(pipeline.bundle, place, Measured(written="2026-11-26", guarantees=(known,)))
    with PromptFolders(pipeline, tmp_path / "out", Options(scaling_space="latent"), ".png") as folders:
        list(folders.paint(folders.missing(lines_of(tmp_path)), lambda _: None))
    assert settings_from_file(tmp_path / "out" / "run.json").options["start_sigma"] == 1.0


def test_every_prompt_starts_at_the_same_seed(tmp_path: Path) -> None:
    lines = lines_of(tmp_path, '{"prompt": "a"}\n{"prompt": "a"}\n')
    paint(tmp_path, lines)
    first, second = ((tmp_path / "out" / f / "samples/0001.png").read_bytes() for f in ("00000", "00001"))
    assert first == second


def test_a_stopped_run_goes_on_where_it_was(tmp_path: Path) -> None:
    lines = lines_of(tmp_path)

    def stop(progress: Progress) -> None:
        if (tmp_path / "out/00002").exists() and progress.done > 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), folders_in(tmp_path) as folders:
        list(folders.paint(folders.missing(lines), stop))
    assert (tmp_path / "out/00000/result.json").exists()
    assert not (tmp_path / "out/00002/result.json").exists()
    assert paint(tmp_path, lines) == ["00002"]
    assert paint(tmp_path, lines) == []


def test_a_folder_that_lost_a_picture_is_painted_again(tmp_path: Path) -> None:
    lines = lines_of(tmp_path)
    paint(tmp_path, lines)
    (tmp_path / "out/00002/samples/0001.png").unlink()
    assert paint(tmp_path, lines) == ["00002"]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("name", ["samples/0001.png", "result.json"])
@pytest.mark.parametrize(
    "damage", [truncate, lambda path: path.write_bytes(b""), lambda path: path.write_bytes(b"x" * 300)]
)
def test_a_folder_that_was_damaged_is_painted_again(tmp_path: Path, name: str, damage: Callable[[Path], Any]) -> None:
    lines = lines_of(tmp_path)
    paint(tmp_path, lines)
    before = (tmp_path / "out/00002/samples/0001.png").read_bytes()
    damage(tmp_path / "out/00002" / name)
    assert paint(tmp_path, lines) == ["00002"]
    assert (tmp_path / "out/00002/samples/0001.png").read_bytes() == before


def test_a_flipped_bit_in_a_picture_is_noticed(tmp_path: Path) -> None:
    lines = lines_of(tmp_path)
    paint(tmp_path, lines)
    flip(tmp_path / "out/00000/samples/0000.png")
    assert paint(tmp_path, lines) == ["00000"]


def test_a_result_without_hashes_does_not_count(tmp_path: Path) -> None:
    lines = lines_of(tmp_path)
    paint(tmp_path, lines)
    (tmp_path / "out/00000/result.json").write_text('{"time": 1.0, "n_sample": 2, "batch_size": 1, "batches": []}')
    assert paint(tmp_path, lines) == ["00000"]


def test_another_format_is_another_setting(tmp_path: Path) -> None:
    lines = lines_of(tmp_path)
    paint(tmp_path, lines)
    pipeline = fake_pipeline(tmp_path / "bundle")
    again = PromptFolders(pipeline, tmp_path / "out", Options(scaling_space="latent", num_images=2), ".jpg")
    with pytest.raises(PlanError, match=r"format was '\.png', is '\.jpg'"), again:
        pass


def test_two_runs_into_one_folder_do_not_mix_their_pictures(tmp_path: Path) -> None:
    lines = lines_of(tmp_path)
    with folders_in(tmp_path) as folders:
        with pytest.raises(PromptError, match="another run is writing pictures into"):
            paint(tmp_path, lines, seed=5)
        assert [line.folder for line, _ in folders.paint(lines, lambda _: None)] == ["00000", "00002"]
    assert paint(tmp_path, lines) == []


def test_a_file_that_begins_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_bytes(b"\xef\xbb\xbf" + TEXT.encode())
    assert len(read_prompt_file(tmp_path / "prompts.jsonl")[0]) == 2


def test_other_settings_are_refused_and_named(tmp_path: Path) -> None:
    lines = lines_of(tmp_path)
    paint(tmp_path, lines)
    with pytest.raises(PlanError, match=r"seed was 0, is 4; .*num_inference_steps was 6, is 9"):
        paint(tmp_path, lines, seed=4, num_inference_steps=9)


@pytest.mark.parametrize("negative", [None, "", "red"])
def test_a_folder_knows_a_negative_prompt_that_is_empty_from_one_that_was_not_given(
    tmp_path: Path, negative: str | None
) -> None:
    lines = lines_of(tmp_path)
    paint(tmp_path, lines, negative_prompt=negative)
    options = settings_from_file(tmp_path / "out" / "run.json").options
    assert options["negative_prompt"] == negative
    assert paint(tmp_path, lines, **options) == []
    other = None if negative == "" else ""
    with pytest.raises(PlanError, match=f"negative_prompt was {negative!r}, is {other!r}"):
        paint(tmp_path, lines, negative_prompt=other)


def test_a_folder_of_another_prompt_is_refused(tmp_path: Path) -> None:
    paint(tmp_path, lines_of(tmp_path))
    with pytest.raises(PromptError, match=r"00000 was made from .*, but line 1 of the prompt file is now"):
        paint(tmp_path, lines_of(tmp_path, '{"prompt": "a blue circle"}\n'))


def test_a_folder_with_other_things_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("")
    with pytest.raises(PromptError, match=r"holds files, but no run\.json"):
        paint(tmp_path, lines_of(tmp_path))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "Input data was truncated"),
        ("[]", "Expected `object`"),
        ("{}", 'it has no "prompt"'),
        ('{"prompt": 3}', "Expected `str`, got `int`"),
    ],
)
def test_a_bad_line_is_named_and_can_be_skipped(tmp_path: Path, line: str, words: str) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(f'{{"prompt": "a"}}\n{line}\n{{"prompt": "b"}}\n')
    with pytest.raises(PromptError, match=f"line 2 of .*{words}"):
        read_prompt_file(file)
    lines, wrong = read_prompt_file(file, bad_lines="skip")
    assert [one.number for one in lines] == [0, 2]
    assert len(wrong) == 1
    assert wrong[0].startswith("line 2 of ")


def test_a_line_ends_where_json_lines_end(tmp_path: Path) -> None:
    """U+2028 and U+0085 are plain characters in JSON, however Python splits lines; Windows ends its own in two."""
    lines = lines_of(tmp_path, '{"prompt": "a\u2028b\x85c"}\r\n{"prompt": ""}\r\n')
    assert [line.prompt for line in lines] == ["a\u2028b\x85c", ""]


def test_a_file_without_prompts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="holds no prompts"):
        lines_of(tmp_path, "\n")
    with pytest.raises(PromptError, match="cannot be read"):
        read_prompt_file(tmp_path / "none.jsonl")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\xff\xfe{\0}\0", "it is in UTF-16; save it as UTF-8"),
        (b'{"prompt": "a", "x": ' + b"[" * 5000, "nested more than 64 deep"),
        (b'{"prompt": "Gr\xf6\xdfe"}', "can't decode byte"),
        (b'{"prompt": "' + b"a" * 20_001 + b'"}', "a prompt of 20,001 characters"),
    ],
)
def test_a_hostile_line_is_refused_with_its_number(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "x.jsonl").write_bytes(content)
    with pytest.raises(PromptError, match=f"line 1 of .*{words}"):
        read_prompt_file(tmp_path / "x.jsonl")


def test_a_byte_order_mark_before_a_prompt_file_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\r\n{"prompt": "b"}\r\n')
    assert [line.prompt for line in read_prompt_file(tmp_path / "x.jsonl")[0]] == ["a", "b"]


def test_a_prompt_file_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.jsonl")
    with pytest.raises(PromptError, match=r"x\.jsonl cannot be read \(it is a pipe and not a file\)"):
        read_prompt_file(tmp_path / "x.jsonl")
