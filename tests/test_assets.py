"""The embedded corpus is whole, and its held-out part is held out."""

import gzip
import hashlib
import json
import random
from pathlib import Path

import numpy as np
import pytest
import soundfile

ASSETS = Path(__file__).resolve().parents[1] / "assets"
CORPUS = ASSETS / "asterisk-en"


@pytest.fixture(autouse=True)
def scripts_are_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ASSETS))


def read_cuts(name: str) -> list[dict]:
    with gzip.open(CORPUS / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def keys_of(cuts: list[dict]) -> set[str]:
    from build_asterisk_en import words_of

    return {" ".join(words_of(cut["supervisions"][0]["text"])) for cut in cuts}


def test_every_file_of_the_corpus_has_its_checksum():
    lines = [line.split("  ") for line in (CORPUS / "SHA256SUMS").read_text().splitlines()]
    assert {path for _, path in lines} == {
        p.relative_to(CORPUS).as_posix()
        for p in [*CORPUS.glob("audio/*"), *CORPUS.glob("*.jsonl.gz"), *CORPUS.glob("*.tar")]
    }
    wrong = [path for digest, path in lines if hashlib.sha256((CORPUS / path).read_bytes()).hexdigest() != digest]
    assert not wrong


def test_manifests_name_every_recording_once_by_a_relative_path():
    sources = [cut["recording"]["sources"][0] for name in ("train", "heldout") for cut in read_cuts(name)]
    assert {source["type"] for source in sources} == {"file"}
    assert sorted(source["source"] for source in sources) == sorted(f"audio/{p.name}" for p in CORPUS.glob("audio/*"))


def test_recordings_decode_to_the_length_that_the_manifest_says():
    for cut in random.Random(0).sample(read_cuts("train") + read_cuts("heldout"), 40):
        audio, rate = soundfile.read(CORPUS / cut["recording"]["sources"][0]["source"], dtype="float32")
        assert (len(audio), rate) == (cut["recording"]["num_samples"], cut["recording"]["sampling_rate"])
        assert cut["duration"] == pytest.approx(len(audio) / rate)
        assert np.isfinite(audio).all() and np.abs(audio).max() > 0.01, cut["id"]


def test_no_heldout_transcript_is_trained_on():
    from build_asterisk_en import similar

    train, heldout = keys_of(read_cuts("train")), keys_of(read_cuts("heldout"))
    assert not train & heldout
    assert not [(a, b) for a in heldout for b in train if similar(a.split(), b.split())]
    assert not [(a, b) for a in heldout for b in train if f" {a} " in f" {b} "]


def test_heldout_is_a_few_minutes_and_fits_whispers_window():
    durations = [cut["duration"] for cut in read_cuts("heldout")]
    assert 2.5 < sum(durations) / 60 < 4
    assert max(durations) <= 30


def test_the_corpus_carries_its_credits_and_licence():
    text = (CORPUS / "LICENSE").read_text()
    assert "Allison Smith" in text and "CC-BY-SA-3.0" in text and "has been modified" in text


def test_notes_are_no_transcript_and_keys_have_names():
    from build_asterisk_en import clean_text

    assert clean_text("at [@]") == "at"
    assert clean_text('IAX (note: does not say "2")') == "IAX"
    assert clean_text("press * to pause,  press # to umute...") == "press star to pause, press pound to unmute"


def test_near_duplicates_fall_on_the_same_side():
    from build_asterisk_en import choose_heldout, group_similar

    assert group_similar(["a b c d", "x y", "a b c e"]) == [["x y"], ["a b c d", "a b c e"]]
    seconds = {"press": 1.0, "press one now": 1.0, "goodbye": 1.0, "a very long one": 40.0}
    assert choose_heldout(seconds) <= {"press one now", "goodbye"}


def test_the_tiny_set_has_a_token_for_every_started_80_ms():
    for name in ("train", "heldout"):
        cuts = read_cuts(f"tiny_{name}")
        assert {cut["id"] for cut in cuts} < {cut["id"] for cut in read_cuts(name)}
        assert [cut["custom"]["speech_tokens"]["array"]["shape"] for cut in cuts] == [
            [-(-cut["recording"]["num_samples"] // 1280)] for cut in cuts
        ]
