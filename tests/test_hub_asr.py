"""Recognisers of the hub: the text they would give alone, and a confidence that is what it says."""

from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
import torch

from speechlm.nn.hub_asr import CtcASR, Seq2SeqASR, load_asr
from tests.tiny_asr import make_ctc, make_multilingual_whisper
from tests.tiny_whisper import make_tiny_whisper

CPU = torch.device("cpu")


def waves() -> list[np.ndarray]:
    """Recordings of different lengths and loudness."""
    rng = np.random.default_rng(0)
    return [(a * rng.standard_normal(n)).astype(np.float32) for n, a in ((16_000, 0.3), (4_000, 0.01), (9_000, 0.1))]


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Seq2SeqASR:
    model = load_asr(str(make_multilingual_whisper(tmp_path_factory.mktemp("whisper"))), CPU)
    assert isinstance(model, Seq2SeqASR)
    return model


@pytest.fixture(scope="module")
def ctc(tmp_path_factory: pytest.TempPathFactory) -> CtcASR:
    model = load_asr(str(make_ctc(tmp_path_factory.mktemp("ctc"))), CPU)
    assert isinstance(model, CtcASR)
    return model


def test_confidence_is_the_mean_log_probability_of_each_token_given_those_before(whisper: Seq2SeqASR):
    for wave, language, start in zip(
        waves(), ["en", "zh", "en"], [[1, 2, 4, 6], [1, 3, 4, 6], [1, 2, 4, 6]], strict=True
    ):
        (label,) = whisper.transcribe([wave], [language])
        inputs = whisper._inputs([wave])
        ids, log_probs = list(start), []
        while len(ids) < 28 and (len(ids) == 4 or ids[-1] != 0):  # one step at a time, without any cache
            with torch.no_grad():
                logits = whisper.model(**inputs, decoder_input_ids=torch.tensor([ids])).logits[0, -1]
            allowed = logits.clone()
            allowed[1:8] = -torch.inf
            ids.append(int(allowed.argmax()))
            log_probs.append(float(logits.log_softmax(-1)[ids[-1]]))
        assert label.text == whisper.tokenizer.decode(ids[4:], skip_special_tokens=True).strip()
        assert label.confidence == pytest.approx(np.mean(log_probs), abs=1e-5)
        with torch.no_grad():
            first = whisper.model(**inputs, decoder_input_ids=torch.tensor([[1]])).logits[0, 0]
        assert label.no_speech == pytest.approx(float(first.softmax(-1)[7]), abs=1e-6)


def test_a_language_is_told_found_out_or_refused(whisper: Seq2SeqASR):
    assert whisper.languages == {"en", "zh"}
    assert [label.language for label in whisper.transcribe(waves()[:2], ["zh", "en"])] == ["zh", "en"]
    inputs = whisper._inputs(waves())
    with torch.no_grad():
        first = whisper.model(**inputs, decoder_input_ids=torch.tensor([[1]] * 3)).logits[:, 0, 2:4]
    likelier = [("en", "zh")[int(i)] for i in first.argmax(-1)]
    assert [label.language for label in whisper.transcribe(waves(), ["", "", ""])] == likelier
    with pytest.raises(ValueError, match="does not know fr; it knows en, zh"):
        whisper.transcribe(waves()[:1], ["fr"])


@pytest.mark.parametrize("kind", ["whisper", "ctc"])
def test_a_recording_is_heard_alike_in_any_company(kind: str, request: pytest.FixtureRequest):
    model: Seq2SeqASR | CtcASR = request.getfixturevalue(kind)
    languages = ["en"] * 3
    together = model.transcribe(waves(), languages)
    for wave, label in zip(waves(), together, strict=True):
        (alone,) = model.transcribe([wave], ["en"])
        assert (alone.text, alone.language) == (label.text, label.language) and label.text
        assert alone.confidence == pytest.approx(label.confidence, abs=2e-3)


def test_a_ctc_transcript_is_the_likeliest_path_without_repetitions_and_blanks(ctc: CtcASR):
    wave = waves()[0]
    (label,) = ctc.transcribe([wave], [""])
    with torch.no_grad():
        log_probs = ctc.model(**ctc._inputs([wave], padding=True)).logits[0].log_softmax(-1)
    letters = ctc.tokenizer.convert_ids_to_tokens(log_probs.argmax(-1).tolist())
    runs = [(letter, [i for i, _ in run]) for letter, run in groupby(enumerate(letters), key=lambda pair: pair[1])]
    spoken = [(letter, frames) for letter, frames in runs if letter != "<pad>"]
    assert label.text == "".join(letter for letter, _ in spoken).replace("|", " ").replace("<unk>", "").strip()
    assert len(spoken) < len(letters)  # there is something to take out
    peaks = [float(log_probs[frames].max(-1).values.max()) for _, frames in spoken]
    assert label.confidence == pytest.approx(np.mean(peaks), abs=1e-5) and label.no_speech is None


def test_an_english_whisper_is_told_no_language(tmp_path: Path):
    model = load_asr(str(make_tiny_whisper(tmp_path)), CPU)
    assert not model.languages and [label.language for label in model.transcribe(waves(), ["en", "", "en"])] == [
        "en",
        "",
        "en",
    ]
    assert model.padded_seconds(1.0) == 30.0


def test_other_weights_have_another_hash(tmp_path: Path):
    hashes = [load_asr(str(make_ctc(tmp_path / str(seed), seed)), CPU).hash for seed in (0, 0, 1)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_model_that_does_not_transcribe_is_refused(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="is a bert, which transformers has neither"):
        load_asr(str(tmp_path), CPU)
