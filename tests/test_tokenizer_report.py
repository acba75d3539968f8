"""The report: one page that needs nothing else, with the numbers of its JSON, safe from what transcripts say."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from speechlm import fit
from speechlm.evals.listening import Heard, snippets_of_code
from speechlm.evals.report_page import Page, card, facts, marked, plain, player, words
from speechlm.tokenizer_report import report, wer_table
from speechlm.tokens.clock import Clock

ROOT = Path(__file__).parents[1]
HOSTILE = '<script>alert("x")</script> & <img src=x onerror=y>'


class Reader(HTMLParser):
    """Tags and attribute values of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.values: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.values += [value for name, value in attrs if name in ("src", "href") and value]


def test_what_a_transcript_says_never_becomes_markup():
    page = Page(HOSTILE, HOSTILE)
    page.heading(HOSTILE, HOSTILE)
    page.table([HOSTILE], [[HOSTILE]])
    page.cards(
        [card(words(HOSTILE), facts([(HOSTILE, plain(HOSTILE)), ("x", marked([(HOSTILE, True), (HOSTILE, False)]))]))]
    )
    tags = Reader(page.render()).tags
    assert "script" not in tags and "img" not in tags


def test_a_player_holds_its_sound():
    html = player(0.1 * np.sin(np.arange(16_000, dtype=np.float32)), 16_000)
    assert re.search(r'src="data:audio/ogg;base64,[A-Za-z0-9+/=]{500,}"', html)


def test_snippets_come_from_where_the_code_is():
    clock = Clock()
    audio = np.zeros(5 * 1280, np.float32)
    audio[2 * 1280 : 3 * 1280] = 0.5
    heard = [Heard("a", audio, np.array([7, 7, 3, 7, 7]), "", "", ""), Heard("b", audio, np.array([1] * 5), "", "", "")]
    assert np.abs(snippets_of_code(heard, 3, clock, context_sec=0.0)).max() == pytest.approx(0.5)
    assert np.abs(snippets_of_code(heard, 7, clock, context_sec=0.0)).max() == 0.0
    assert np.abs(snippets_of_code(heard, 9, clock)).max() == 0.0


def test_a_run_becomes_a_page_with_the_numbers_of_its_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    torch.set_num_threads(1)
    monkeypatch.chdir(ROOT)
    fit.main(
        [
            "--config",
            "configs/speech_tokenizer/tiny/12.5hz.yaml",
            "--runs_dir",
            str(tmp_path),
            "--trainer.max_steps",
            "2",
        ]
    )
    run = tmp_path / "tiny_12.5hz"
    numbers = report(run, limit=2)
    html = (run / "report.html").read_text(encoding="utf-8")
    saved = json.loads((run / "report.json").read_text())
    assert saved["sets"]["heldout"]["recordings"] == 2
    assert saved["codebook"] == numbers["codebook"]
    for cell in wer_table(saved)[1][0]:
        assert cell in html
    assert all(value.startswith("data:") for value in Reader(html).values)
    assert html.count("<audio") > 2 and html.count("<img") > 3


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="no run folder"):
        report(tmp_path)
