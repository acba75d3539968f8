"""What surrounds text and speech, and what of it the model has to predict."""

import numpy as np
import pytest

from speechlm.tokens.templates import TEMPLATES, Template, Writer
from speechlm.tokens.vocab import Vocab

VOCAB = Vocab(num_text=100, num_speech=16)
BEGIN, END, USER, ASSISTANT = (
    VOCAB.control(name) for name in ("<|begin_of_audio|>", "<|end_of_audio|>", "<|user|>", "<|assistant|>")
)
TEXT, SPEECH, STOP = np.array([7, 8]), np.array([0, 15]), 99


def writer(kind: str, template: Template | None = None, **changes) -> Writer:
    """A writer whose text tokenizer knows every word as 50 and <|eot|> as 98."""
    return Writer(kind, template, VOCAB, lambda text: [50] * len(text.split()), {"<|eot|>": 98}, STOP, **changes)


def test_text_and_speech_alone_are_predicted_whole():
    text = writer("text").write(text=TEXT)
    assert text.ids.tolist() == [7, 8, STOP] and text.target == 0
    speech = writer("speech").write(speech=SPEECH)
    assert speech.ids.tolist() == [BEGIN, 107, 122, END, STOP] and speech.target == 0


def test_of_pairs_only_the_target_is_predicted():
    asr = writer("asr").write(text=TEXT, speech=SPEECH)
    assert asr.ids[asr.target :].tolist() == [7, 8, STOP]
    assert asr.ids[: asr.target].tolist() == [USER, 50, 50, 50, BEGIN, 107, 122, END, ASSISTANT]
    tts = writer("tts").write(text=TEXT, speech=SPEECH)
    assert tts.ids[tts.target :].tolist() == [BEGIN, 107, 122, END, STOP]
    assert tts.ids[: tts.target].tolist() == [USER, 50, 50, 50, 50, 7, 8, ASSISTANT]


@pytest.mark.parametrize("boundaries", [True, False])
def test_interleaved_documents_are_predicted_whole(boundaries: bool):
    made = writer("interleaved", boundaries=boundaries).write(parts=[("text", TEXT), ("speech", SPEECH)])
    inner = [BEGIN, 107, 122, END] if boundaries else [107, 122]
    assert made.ids.tolist() == [7, 8, *inner, STOP] and made.target == 0


def test_a_template_of_ones_own_may_name_special_tokens_of_the_text_tokenizer():
    made = writer("asr", Template("{text}<|eot|>", "{speech} say")).write(text=TEXT, speech=SPEECH)
    assert made.ids.tolist() == [107, 122, 50, 7, 8, 98] and made.target == 3


@pytest.mark.parametrize(
    ("kind", "template", "message"),
    [
        ("asr", Template("{text}"), "has {speech} and {text} once each"),
        ("text", Template("{text}{text}"), "has {text} once each"),
        ("text", Template("{text}{speech}"), "no other slot"),
        ("text", Template("{text}<|stop|>"), r"names <\|stop\|>; there are"),
        ("text", Template("{txt}"), "names {txt}; there are {text}"),
        ("song", None, "kind must be one of text, speech, asr, tts, interleaved"),
    ],
)
def test_a_template_that_can_not_be_written_is_refused(kind: str, template: Template | None, message: str):
    with pytest.raises(ValueError, match=message):
        writer(kind, template)


def test_a_tokenizer_without_an_end_is_refused_where_the_template_wants_one():
    with pytest.raises(ValueError, match="no end of text"):
        Writer("text", None, VOCAB, lambda text: [])
    Writer("text", Template("{text}"), VOCAB, lambda text: [])


def test_ids_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"text id 100 is outside"):
        writer("text").write(text=np.array([100]))
    with pytest.raises(ValueError, match=r"speech code 16 is outside"):
        writer("speech").write(speech=np.array([16]))


def test_there_is_a_template_for_every_kind():
    assert all(writer(kind) for kind in TEMPLATES)


def test_a_voice_is_in_the_prompt_where_the_template_has_one():
    voiced = writer("tts", Template("{speech}{end}", "<|system|>{voice}<|user|>{text}<|assistant|>"))
    made = voiced.write(text=TEXT, speech=SPEECH, voice="ann of here")
    system = VOCAB.control("<|system|>")
    assert made.ids.tolist() == [system, 50, 50, 50, USER, 7, 8, ASSISTANT, 107, 122, STOP] and made.target == 8
    assert voiced.opening(TEXT, "ann of here").tolist() == made.ids[: made.target].tolist()
    with pytest.raises(ValueError, match="nothing says who speaks"):
        voiced.opening(TEXT)
    with pytest.raises(ValueError, match="no other slot"):
        writer("speech", Template("{voice}{speech}"))
