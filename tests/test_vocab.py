"""One id space, and a hash that notices every difference."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from speechlm.tokens.vocab import CONTROLS, Vocab

VOCAB = Vocab(num_text=100, num_speech=16, text_tokenizer="t", speech_tokenizer="s")


def test_every_id_is_text_control_or_speech_and_only_one_of_them():
    ids = torch.arange(len(VOCAB))
    text, speech = VOCAB.is_text(ids), VOCAB.is_speech(ids)
    assert text.sum() == 100 and speech.sum() == 16 and not (text & speech).any()
    assert (~(text | speech)).sum() == len(CONTROLS)
    assert not VOCAB.is_speech(torch.tensor([-1, len(VOCAB)])).any()


def test_speech_codes_survive_the_way_there_and_back():
    codes = torch.arange(16)
    assert torch.equal(VOCAB.ids_to_speech(VOCAB.speech_to_ids(codes)), codes)


@pytest.mark.parametrize("code", [-1, 16])
def test_a_code_out_of_range_is_refused(code: int):
    with pytest.raises(ValueError, match=rf"speech code {code} is outside \[0, 16\)"):
        VOCAB.speech_to_ids(torch.tensor([0, code]))


def test_text_ids_are_no_speech():
    with pytest.raises(ValueError, match="outside"):
        VOCAB.ids_to_speech(torch.tensor([5]))


@pytest.mark.parametrize(
    "change",
    [
        {"num_text": 101},
        {"num_speech": 17},
        {"controls": CONTROLS[::-1]},
        {"text_tokenizer": "u"},
        {"speech_tokenizer": "u"},
    ],
)
def test_any_difference_changes_the_hash_and_is_refused_with_both_sides(change: dict):
    other = dataclasses.replace(VOCAB, **change)
    assert other.hash != VOCAB.hash
    with pytest.raises(
        ValueError, match=rf"rows\.bin was made with vocabulary {other.hash}, this run has {VOCAB.hash}"
    ):
        VOCAB.require(other.hash, "rows.bin")


def test_the_hash_never_changes_between_versions():
    assert VOCAB.hash == "62b0c6d0d3c724e2"


def test_a_saved_vocabulary_comes_back_and_an_edited_one_is_refused(tmp_path: Path):
    VOCAB.save(tmp_path / "vocab.json")
    assert Vocab.load(tmp_path / "vocab.json") == VOCAB
    fields = json.loads((tmp_path / "vocab.json").read_text())
    (tmp_path / "vocab.json").write_text(json.dumps({**fields, "num_speech": 32}))
    with pytest.raises(ValueError, match="was made with vocabulary"):
        Vocab.load(tmp_path / "vocab.json")


def test_unknown_controls_are_refused_with_those_that_exist():
    assert VOCAB.control("<|begin_of_audio|>") == 100
    with pytest.raises(ValueError, match=r"no control token '<\|audio\|>'"):
        VOCAB.control("<|audio|>")
