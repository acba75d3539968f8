"""The interleave report says what is on disk: how much is spoken, in what pieces, what was refused, and what it sounds like."""

import json
import re
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datamodules.interleaved import Interleaved, read_interleaved
from datamodules.interleaving import InterleaveJob, InterleaveSettings, TextSource
from speechlm import interleave_report
from speechlm.engines.base import Sampling
from speechlm.evals.histogram import Counting
from speechlm.evals.interleave_numbers import Survey
from speechlm.interleave_report import report
from speechlm.text_tokenizer import TextTokenizer
from speechlm.tokens.interleave import words_of
from speechlm.tokens.vocab import Vocab
from tests.test_interleaving import Silent, speaker
from tests.test_resynthesize import decoder
from tests.text_corpus import make_tokenizer
from tests.tiny_flow import V

TEXT = "the quick brown fox jumps over the lazy dog & <b>speech</b> goes on and on "


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tokenizer(tmp_path_factory.mktemp("text"))


def made(folder: Path, tokenizer_folder: Path, documents: int = 12, fail: str = "", **settings: Any) -> Path:
    """A folder of one source, named "web"."""
    texts = folder / "texts"
    texts.mkdir()
    lines = [json.dumps({"id": f"d{n}", "text": TEXT * (n % 3 + 1)}) for n in range(documents)]
    (texts / "a.jsonl").write_text("\n".join(["{not json", *lines]) + "\n", encoding="utf-8")
    tokenizer = TextTokenizer(tokenizer_folder)
    vocab = Vocab(tokenizer.size, V, text_tokenizer=tokenizer.fingerprint, speech_tokenizer="s")
    kept = InterleaveSettings(shard_documents=5, **settings)
    job = InterleaveJob(
        TextSource([str(texts)]), kept, vocab, tokenizer, folder / "out/web", 12.5, Sampling(), "model!"
    )
    engine = speaker(job, fail=fail)
    engine.target = engine.target.__class__(engine.target.first, V, engine.target.stop)
    job.run(engine, 0, 1, Silent())
    return folder / "out"


def spans_of(out: Path) -> list[np.ndarray]:
    shards = sorted(out.glob("web/*-*.safetensors"))
    parts = [part for shard in shards for document in read_interleaved(shard) for part in document.parts]
    return [ids for kind, ids in parts if kind == "speech"]


def test_the_numbers_are_those_of_the_documents_on_disk(tmp_path: Path, tokenizer_folder: Path):
    out = made(tmp_path, tokenizer_folder)
    source = report(out, model=str(tokenizer_folder)).sources["web"]
    spans, histograms = spans_of(out), source.histograms
    assert source.complete and source.shards == 3 and not source.damaged
    assert source.counts["documents"] == 12 == histograms["ids in a document"].values
    assert source.documents_left_out == {"bad line": 1}
    assert histograms["speech ids in a span"].mean == pytest.approx(np.mean([len(ids) for ids in spans]))
    assert histograms["speech ids in a span"].largest == max(map(len, spans))
    words = 12 * 2 * len(words_of(TEXT))  # documents have one, two or three times the text
    assert histograms["words in a document"].mean * 12 == words
    share = histograms["words in a span"].mean * len(spans) / words
    assert 0.3 <= share < 0.7
    assert source.speech_ids_per_text_id == source.counts["speech_ids"] / source.counts["spoken_text_ids"]
    by_span = histograms["speech ids per id of text, by span"]
    assert by_span.values == len(spans) and 1 < by_span.mean < 10
    assert source.speech_seconds == sum(map(len, spans)) / 12.5
    assert source.provenance["model"] == "model!" and source.provenance["settings"]["mean_span"] == 10.0


def test_the_page_shows_what_is_spoken_of_each_document_and_the_json_fits_its_schema(
    tmp_path: Path, tokenizer_folder: Path
):
    out = made(tmp_path, tokenizer_folder)
    report(out, samples=20)
    page = (out / "report.html").read_text(encoding="utf-8")
    shards = sorted(out.glob("web/*-*.safetensors"))
    shown = dict(re.findall(r'<div>(d\d+)</div><div class="text">(.*?)</div>', page, re.DOTALL))
    assert len(shown) == 12
    for document in (one for shard in shards for one in read_interleaved(shard)):
        text = TEXT * (int(document.id[1:]) % 3 + 1)
        pieces = re.findall(r'<span class="spoken">(.*?)</span>', shown[document.id], re.DOTALL)
        expected = [
            text[a:b]
            for (kind, _), (a, b) in zip(document.parts, document.chars or [], strict=True)
            if kind == "speech"
        ]
        assert [piece.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&") for piece in pieces] == expected
    assert "<b>" not in page and "<audio" not in page
    written = json.loads((out / "report.json").read_text(encoding="utf-8"))
    schema = json.loads((out / "report.schema.json").read_text(encoding="utf-8"))
    one = schema["properties"]["sources"]["additionalProperties"]
    assert set(written) == set(schema["required"]) and set(written["sources"]["web"]) == set(one["required"])


def test_refused_spans_are_counted_by_reason(
    tmp_path: Path, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
):
    out = made(tmp_path, tokenizer_folder, fail="always", tries=2)
    interleave_report.main(["--data", str(out / "web"), "--out", str(tmp_path / "page")])
    written = json.loads((tmp_path / "page/report.json").read_text(encoding="utf-8"))["sources"]["web"]
    assert written["spans_left_as_text"] == {"no end": written["counts"]["spans"]}
    assert "no end" in capsys.readouterr().out
    assert not (out / "web/report.html").exists()


def test_spans_are_heard_through_a_decoder_that_fits(
    tmp_path: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    torch.manual_seed(0)
    built, asked = decoder(), list[Any]()
    monkeypatch.setattr(interleave_report, "open_decoder", lambda *names: asked.append(names) or built)
    out = made(tmp_path, tokenizer_folder, documents=3)
    report(out, decoder="d", vocoder="v", sounds=3)
    page = (out / "report.html").read_text(encoding="utf-8")
    assert asked == [("d", "v", "cpu")]
    assert page.count("<audio") == 3
    speak = interleave_report.speaker(built)
    codes = spans_of(out)[0]
    assert 0 <= len(codes) * 1764 - len(speak(codes)) < 256 and np.array_equal(speak(codes), speak(codes))
    with pytest.raises(ValueError, match=f"has code {V}, the decoder speaks {V}"):
        speak(np.array([0, V]))
    built.clock = built.clock.__class__(sample_rate_hz=22_050, token_rate_hz=25, hop_samples=126)
    with pytest.raises(ValueError, match=r"has 12.5 speech tokens per second, the decoder speaks 25"):
        report(out, decoder="d")


def test_a_shard_that_is_damaged_is_named_and_not_counted(tmp_path: Path, tokenizer_folder: Path):
    out = made(tmp_path, tokenizer_folder)
    victim = sorted(out.glob("web/*-*.safetensors"))[1]
    content = bytearray(victim.read_bytes())
    content[-1] ^= 1
    victim.write_bytes(bytes(content))
    (out / "web/00000.json").unlink()
    source = report(out).sources["web"]
    assert set(source.damaged) == {victim.name} and not source.complete
    assert source.shards == 2
    assert source.counts["documents"] == 12 - 5


def test_without_the_source_texts_what_needs_no_words_is_counted(tmp_path: Path, tokenizer_folder: Path):
    out = made(tmp_path, tokenizer_folder)
    (tmp_path / "texts/a.jsonl").write_text("{}\n", encoding="utf-8")
    source = report(out).sources["web"]
    assert source.documents_without_text == 12 and "another size" in source.texts_missing
    assert "words in a span" not in source.histograms
    assert source.histograms["speech ids in a span"].values == source.counts["spoken"]
    assert "their words are not counted" in (out / "report.html").read_text(encoding="utf-8")


def test_memory_does_not_grow_with_the_documents():
    seen = Survey(samples=3)
    used = []
    tracemalloc.start()
    for n in range(6000):
        parts = [("text", np.arange(5)), ("speech", np.arange(n % 50 + 1)), ("text", np.arange(5))]
        seen.add(Interleaved(f"d{n}", parts, [(0, 20), (20, 40), (40, len(TEXT))]), TEXT)
        if n % 2000 == 1999:
            used.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert used[2] - used[1] < 20_000
    assert len(seen.shown()) == 3
    turned = Survey(samples=3)
    for n in reversed(range(6000)):
        turned.add(Interleaved(f"d{n}", [("speech", np.arange(3))], [(0, len(TEXT))]), TEXT)
    assert [one.id for one in turned.shown()] == [
        one.id for one in seen.shown()
    ]  # which are shown is no matter of order


def test_a_histogram_knows_its_values():
    counting = Counting(np.array([0.0, 1.0, 10.0, 100.0]))
    counting.add([0.5, 1, 9.9, 10, 5000])
    counting.add([])
    histogram = counting.histogram()
    assert histogram.counts == [1, 2, 1, 1] and histogram.values == 5
    assert (histogram.median, histogram.largest, histogram.mean) == (1.0, 5000.0, pytest.approx(5021.4 / 5))
    assert Counting(np.arange(3)).histogram().counts == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data", "no/such/folder"], "has no interleaved documents"),
        (["--data", "{out}", "--vocoder", "v"], "name the decoder too"),
        (["--data", "{out}", "--model", "{other}"], "has another text tokenizer"),
        (["--data", "{out}", "--decoder", "{other}"], "no run folder"),
    ],
)
def test_wrong_arguments_exit_2_and_say_why(
    words: list[str], said: str, tmp_path: Path, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
):
    other = make_tokenizer(tmp_path / "other", ["something else"] * 3)
    out = made(tmp_path, tokenizer_folder, documents=1)
    with pytest.raises(SystemExit) as ended:
        interleave_report.main([word.format(out=out, other=other) for word in words])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
