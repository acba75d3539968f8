"""Cards: what data and models say of themselves, taken from what made them."""

import json
from pathlib import Path

import lightning as L
import pytest
import yaml
from torch import nn

from datamodules.data_card import CARD, MARK, DataCard, licences_of
from speechlm.model_card import model_card, write_model_card


def card(**changes: object) -> DataCard:
    return DataCard(
        "Rows", "python -m speechlm.pack", counts={"ids": 1200, "hours": 1.5}, skipped={"empty": 3}, **changes
    )


def test_a_card_says_the_same_to_people_and_to_programs(tmp_path: Path):
    card(licence="CC0-1.0", languages=("en", "zh"), hashes={"vocabulary": "ab12"}).write(tmp_path)
    said, page = json.loads((tmp_path / CARD).read_text()), (tmp_path / "README.md").read_text()
    assert said["counts"] == {"ids": 1200, "hours": 1.5} and said["licence"] == "CC0-1.0"
    for words in ("1,200", "1.50", "left out: empty | 3", "`ab12`", "en, zh", "CC0-1.0", "speechlm.pack"):
        assert words in page


def test_a_licence_travels_from_corpus_to_tokens_to_rows(tmp_path: Path):
    corpus, tokens, rows = (tmp_path / name for name in ("corpus", "tokens", "rows"))
    for folder in (corpus, tokens, rows):
        folder.mkdir()
    card(licence="CC-BY-4.0").write(corpus)
    card(made_of=(str(corpus / "train.jsonl.gz"),)).write(tokens)
    card(made_of=(str(tokens), str(tmp_path / "found_somewhere.jsonl"))).write(rows)
    assert json.loads((tokens / CARD).read_text())["licence"] == "CC-BY-4.0"
    assert (
        json.loads((rows / CARD).read_text())["licence"]
        == f"CC-BY-4.0; unknown, of {tmp_path / 'found_somewhere.jsonl'}"
    )


def test_a_page_that_somebody_wrote_is_kept_and_ours_is_made_anew(tmp_path: Path):
    card().write(tmp_path)
    assert MARK in (tmp_path / "README.md").read_text()
    card(licence="new").write(tmp_path)
    assert "new" in (tmp_path / "README.md").read_text()
    (tmp_path / "README.md").write_text("mine")
    card(licence="newer").write(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"
    assert licences_of([str(tmp_path / "x")]) == {"newer"}


class Small(L.LightningModule):
    """Any stage."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Linear(4, 5)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "small"
    folder.mkdir(parents=True)
    config = {
        "name": "small",
        "clock": {"token_rate_hz": 12.5},
        "model": {"class_path": "x.Small", "init_args": {"whisper": "openai/whisper-tiny"}},
        "data": {"init_args": {"train": [{"path": "data/a.jsonl.gz", "language": "en", "weight": 0.3}]}},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "env.json").write_text(json.dumps({"git": {"commit": "0123456789abcdef", "dirty": True}}))
    lines = [{"step": 5, "data/hours": 1.0, "val/a/wer": 0.9}, {"step": 9, "data/hours": 2.0, "val/a/wer": 0.25}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_a_model_card_tells_data_results_and_code_of_the_run(run: Path):
    text = model_card(run, Small(), "hf")
    front = yaml.safe_load(text.split("---")[1])
    assert front["language"] == ["en"] and front["base_model"] == ["openai/whisper-tiny"]
    for words in (
        "| weights | 25 |",
        "2.0",
        "val/a/wer | 0.25",
        "0123456789ab with changes",
        "`data/a.jsonl.gz`",
        "0.3",
    ):
        assert words in text
    assert "0.9" not in text


def test_a_run_without_numbers_says_so(run: Path):
    (run / "metrics.jsonl").unlink()
    assert "None were measured" in model_card(run, Small(), "hf")


def test_an_exported_folder_keeps_the_card_it_has(run: Path, tmp_path: Path):
    out = tmp_path / "out"
    write_model_card(run, Small(), out, "hf")  # an export to a file makes no folder
    assert not out.exists()
    out.mkdir()
    write_model_card(run, Small(), out, "hf")
    assert "# small" in (out / "README.md").read_text()
    (out / "README.md").write_text("of the model it started from")
    write_model_card(run, Small(), out, "hf")
    assert (out / "README.md").read_text() == "of the model it started from"
