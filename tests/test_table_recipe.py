"""A table of recordings becomes manifests, and no held-out text is in training."""

import json
from pathlib import Path

import pytest
import soundfile

from datamodules.cuts import read_cuts
from datamodules.prepare import main
from datamodules.recipes.table import _held_out
from datamodules.recordings import load_recording
from speechlm.tokens.clock import Clock
from tests.audio_corpus import RATE_HZ, tone

TEXTS = ["uno", "dos", "Tres", "cuatro", "cinco", "  dos ", "tres", "seis", "siete", "ocho", "nueve", "diez"]


def table(folder: Path, suffix: str, **columns: str) -> Path:
    """Twelve recordings, some of which say the same, as the wanted kind of table."""
    rows = []
    for number, text in enumerate(TEXTS):
        name = f"wavs/r{number:02d}.flac"
        (folder / "wavs").mkdir(exist_ok=True)
        soundfile.write(folder / name, tone(0.2 + 0.02 * number, seed=number), RATE_HZ)
        rows.append({"path": name, "text": text, **columns})
    path = folder / f"table{suffix}"
    if suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        mark = "\t" if suffix == ".tsv" else ","
        lines = [mark.join(rows[0]), *(mark.join(row.values()) for row in rows)]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def prepare(path: Path, *more: str) -> dict[str, list]:
    out = path.parent / "out"
    main(["table", "--table", str(path), "--out", str(out), "--language", "es", "--heldout_share", "0.4", *more])
    return {name: list(read_cuts(out / f"{name}.jsonl.gz")) for name in ("train", "heldout")}


@pytest.mark.parametrize("suffix", [".jsonl", ".tsv", ".csv"])
def test_every_row_is_on_one_side_and_the_same_text_on_the_same_side(tmp_path: Path, suffix: str):
    sides = prepare(table(tmp_path, suffix, speaker="ana"))
    texts = {name: {" ".join(c.supervisions[0].text.lower().split()) for c in cuts} for name, cuts in sides.items()}
    assert len(sides["train"]) + len(sides["heldout"]) == len(TEXTS)
    assert texts["train"] and texts["heldout"] and not texts["train"] & texts["heldout"]
    for cut in [*sides["train"], *sides["heldout"]]:
        assert (cut.supervisions[0].language, cut.supervisions[0].speaker) == ("es", "ana")
        assert len(load_recording(cut, Clock())) == round(cut.duration * RATE_HZ)


def test_case_and_blanks_do_not_part_recordings_of_the_same_text():
    sides = [[_held_out(text, 0.5, seed) for text in ("Marque dos", "  marque   DOS ")] for seed in range(20)]
    assert all(one == other for one, other in sides) and len({one for one, _ in sides}) == 2


def test_the_split_depends_on_the_seed_alone(tmp_path: Path):
    path = table(tmp_path, ".jsonl")
    ids = [[c.id for c in prepare(path, "--seed", seed)["heldout"]] for seed in ("0", "0", "1")]
    assert ids[0] == ids[1] != ids[2]


def test_what_a_row_says_of_itself_counts(tmp_path: Path):
    path = table(tmp_path, ".jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[3] |= {"id": "fourth", "language": "gl"}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    cuts = {c.id: c for side in prepare(path).values() for c in side}
    assert cuts["fourth"].supervisions[0].language == "gl"
    assert cuts["wavs/r02"].supervisions[0].language == "es" and cuts["wavs/r02"].supervisions[0].speaker is None


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda rows: rows[1].pop("text"), "row 2 .* has no text"),
        (lambda rows: rows[1].update(path="gone.flac"), "names .*gone.flac, which is not there"),
        (lambda rows: rows.clear(), "no text .* falls into train"),
    ],
)
def test_a_table_that_is_wrong_is_refused_and_nothing_is_written(tmp_path: Path, change, problem: str):
    path = table(tmp_path, ".jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    change(rows)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(SystemExit, match=problem):
        prepare(path)
    assert not (tmp_path / "out").exists()


def test_other_files_are_no_tables(tmp_path: Path):
    path = table(tmp_path, ".jsonl").rename(tmp_path / "table.xlsx")
    with pytest.raises(SystemExit, match=r"\.jsonl, \.tsv or \.csv"):
        prepare(path)


def test_a_file_that_is_no_sound_is_left_out_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = table(tmp_path, ".tsv")
    (tmp_path / "wavs" / "r05.flac").write_bytes(b"<html>")
    sides = prepare(path)
    assert sum(map(len, sides.values())) == len(TEXTS) - 1
    assert "1 left out (1 unreadable audio)" in capsys.readouterr().out


@pytest.mark.parametrize("text", ['"Buenos dias', '"Buenos" dias'])
def test_a_stray_quotation_mark_swallows_no_rows(tmp_path: Path, text: str):
    path = table(tmp_path, ".tsv")
    path.write_text(path.read_text().replace("cuatro", text))
    with pytest.raises(SystemExit, match="quotation mark"):
        prepare(path)


def test_the_card_says_how_much_there_is_of_what_and_under_which_licence(tmp_path: Path):
    sides = prepare(table(tmp_path, ".jsonl"), "--licence", "CC0-1.0")
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert card["licence"] == "CC0-1.0" and card["languages"] == ["es"]
    for name, cuts in sides.items():
        assert card["counts"][f"recordings in {name}"] == len(cuts)
        assert card["counts"][f"hours in {name}"] == pytest.approx(sum(cut.duration for cut in cuts) / 3600)
