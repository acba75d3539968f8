"""The report: one page that needs nothing else, with the numbers of its JSON, safe from what transcripts say."""

import json
import re
from dataclasses import asdict, dataclass
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datamodules.cuts import read_cuts, write_cuts
from speechlm import fit
from speechlm.evals import perturbations
from speechlm.evals import tokenizer_tables as tables
from speechlm.evals.json_schema import schema_of
from speechlm.evals.listening import Heard, snippets_of_code
from speechlm.evals.report_page import Page, card, facts, marked, plain, player, words
from speechlm.tokenizer_report import main, report
from speechlm.tokens.clock import Clock
from tests.audio_corpus import make_corpus

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden" / "glm4voice_tokenizer"
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


@pytest.fixture(autouse=True)
def from_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        config = ["--config", "configs/speech_tokenizer/tiny/12.5hz.yaml", "--runs_dir", str(folder)]
        fit.main([*config, "--trainer.max_steps", "2", "--trainer.limit_val_batches", "0"])
    return folder / "tiny_12.5hz"


def two_languages(folder: Path) -> list[str]:
    """Three recordings each of two speakers, an English and a Spanish one, in manifests of the same name."""
    paths = []
    for language in ("en", "es"):
        manifest = make_corpus(folder / language, 3, name="heldout", seconds=(0.4, 0.8))
        cuts = list(read_cuts(manifest))
        for cut in cuts:
            cut.id = f"{language}-{cut.id}"
            cut.supervisions[0].language = language
            cut.supervisions[0].speaker = f"speaker of {language}"
        write_cuts(cuts, manifest)
        paths.append(str(manifest))
    return paths


def check(value: Any, schema: dict[str, Any], where: str = "report") -> None:
    """The part of JSON Schema that our schemas use."""
    if "anyOf" in schema:
        problems = []
        for choice in schema["anyOf"]:
            try:
                return check(value, choice, where)
            except AssertionError as problem:
                problems.append(str(problem))
        raise AssertionError("; ".join(problems))
    if "enum" in schema:
        assert value in schema["enum"], where
    kinds = {"string": str, "integer": int, "number": (int, float), "null": type(None), "object": dict, "array": list}
    if "type" in schema:
        assert isinstance(value, kinds.get(schema["type"], bool)), f"{where} is {value!r}, not {schema['type']}"
    if isinstance(value, dict) and "properties" in schema:
        assert value.keys() == set(schema["required"]), where
        for name, child in value.items():
            check(child, schema["properties"][name], f"{where}.{name}")
    elif isinstance(value, dict):
        for name, child in value.items():
            check(child, schema.get("additionalProperties", {}), f"{where}.{name}")
    elif isinstance(value, list):
        for child in value:
            check(child, schema.get("items", {}), where)
    return None


def test_a_run_becomes_a_page_with_the_numbers_of_its_json(run: Path):
    numbers = report(run, limit=2, disturbed=2)
    html = (run / "report.html").read_text(encoding="utf-8")
    saved = json.loads((run / "report.json").read_text())
    assert saved == asdict(numbers)
    assert saved["sets"]["heldout"]["recordings"] == 2 and saved["trained_languages"] == ["en"]
    assert saved["codebook"]["bits_per_sec"] == 12.5 * 6
    for table in (tables.set_table, tables.language_table, tables.robustness_table, tables.advice_table):
        header, rows = table(numbers)
        assert rows and all(escape(cell) in html for row in [header, *rows] for cell in row)
    assert saved["robustness"].keys() == perturbations.ALL.keys()
    assert "it takes two speakers" in html  # the prompts have one
    assert all(value.startswith("data:") for value in Reader(html).values)
    assert html.count("<audio") > 2 and html.count("<img") > 3


def test_the_json_is_what_its_schema_says(run: Path, tmp_path: Path):
    report(run, two_languages(tmp_path), disturbed=1, out=tmp_path)
    schema = json.loads((tmp_path / "report.schema.json").read_text())
    saved = json.loads((tmp_path / "report.json").read_text())
    check(saved, schema)
    burnt = {"es": {**saved["advice"]["es"], "verdict": "burn"}}
    for broken in ({**saved, "schema": "2"}, {**saved, "more": 1}, {**saved, "advice": burnt}):
        with pytest.raises(AssertionError):
            check(broken, schema)


def test_languages_and_speakers_are_told_apart(run: Path, tmp_path: Path):
    numbers = report(run, two_languages(tmp_path), disturbed=0, out=tmp_path)
    assert list(numbers.sets) == ["en/heldout", "es/heldout"] and numbers.sets["es/heldout"].languages == ["es"]
    assert list(numbers.languages) == list(numbers.advice) == ["en", "es"]
    assert numbers.advice["en"].perplexity_share is None and 0 < numbers.advice["es"].perplexity_share < 3
    assert numbers.speaker_leakage is not None
    assert (numbers.speaker_leakage.speakers, numbers.speaker_leakage.recordings) == (2, 6)
    assert numbers.robustness == {}
    assert "es (not trained on)" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_released_folder_is_reported_on_like_a_run(tmp_path: Path):
    cuts = make_corpus(tmp_path, 4, seconds=(0.3, 0.9))
    numbers = report(GOLDEN, [str(cuts)], language="en", disturbed=1, out=tmp_path / "out")
    assert numbers.codebook.num_codes == 64 and numbers.token_rate_hz == 12.5
    assert numbers.sets["a"].wer.unquantised is None
    assert numbers.advice["en"].verdict == "unknown"
    source = {"source": "assets/whisper-nano-en", "source_form": "unpadded"}
    compared = report(GOLDEN, [str(cuts)], language="en", disturbed=0, out=tmp_path / "out", **source)
    assert compared.sets["a"].wer.unquantised is not None and compared.advice["en"].verdict != "unknown"


def test_the_command_shows_what_it_wrote(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    main(["--run", str(run), "--limit", "2", "--disturbed", "0", "--out", str(tmp_path)])
    shown = capsys.readouterr().out
    assert "keep, fine-tune or retrain" in shown and str(tmp_path / "report.html") in shown.replace("\n", "")


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        main(["--run", str(tmp_path)])
    assert stopped.value.code == 2 and "no run folder" in capsys.readouterr().err


def test_a_schema_knows_what_it_can_not_say():
    @dataclass
    class Odd:
        path: Path

    with pytest.raises(TypeError, match="no JSON Schema for"):
        schema_of(Odd)
