"""Text chats to spoken dialogues: only what can be said, both sides in their voices, the same after a kill."""

import json
from pathlib import Path

import numpy as np
import pytest

from datamodules.chats import Chat, ChatSettings, read_chats, sayable_chat, shortened, unsayable
from datamodules.dialogues import read_dialogues
from datamodules.interleaving import InterleaveSettings, TextSource
from datamodules.speaking_chats import ChatJob
from speechlm.engines.base import Sampling
from speechlm.text_tokenizer import TextTokenizer
from speechlm.tokens.templates import Template
from speechlm.tokens.vocab import Vocab
from tests.test_interleaving import Silent, content, speaker
from tests.text_corpus import make_tokenizer

VOICED = Template("{speech}<|user|>", "<|system|>{voice}<|user|>{text}<|assistant|>")
ULTRA = {"id": "u", "data": ["where is the cat?", "on **a mat**.", "and then?", "It went far away."]}
SHARE = {
    "id": "s",
    "conversations": [
        {"from": "system", "value": "You are kind."},
        {"from": "human", "value": "what was there to see?"},
        {"from": "gpt", "value": "The cat. " + "It sat and sat. " * 40},
        {"from": "human", "value": "print it"},
        {"from": "gpt", "value": "```python\nprint(1)\n```"},
    ],
}
ASSISTANT = {"question": "what is there?", "answer": "A mat.", "split_name": "identity"}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    return TextTokenizer(make_tokenizer(tmp_path_factory.mktemp("text")))


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chats")
    lines = [ULTRA, SHARE, ASSISTANT, {"data": ["what is 2*3=6?", "six"]}, {"data": 5}, {"data": ["no reply"]}]
    (folder / "0.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    more = [
        {"id": f"m{n}", "messages": [{"role": r, "content": "the cat"} for r in ("user", "assistant")]}
        for n in range(9)
    ]
    (folder / "1.jsonl").write_text("\n".join(map(json.dumps, more)) + "\n")
    return folder


def job(tokenizer: TextTokenizer, chats: Path, out: Path, settings: ChatSettings, voiced: bool = True) -> ChatJob:
    vocab = Vocab(tokenizer.size, 64, text_tokenizer=tokenizer.fingerprint, speech_tokenizer="s")
    template = VOICED if voiced else None
    kept = InterleaveSettings(shard_documents=4, open_shards=2, template=template)
    return ChatJob(settings, TextSource([str(chats)]), kept, vocab, tokenizer, out, 12.5, Sampling(), "m")


SETTINGS = ChatSettings(max_reply_words=10, user_voices=("anna", "ben"), reply_voices=("carl",))


@pytest.fixture(scope="module")
def unbroken(tokenizer: TextTokenizer, chats: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "talk"
    one = job(tokenizer, chats, out, SETTINGS)
    one.run(speaker(one), 0, 1, Silent())
    return out


def test_every_published_form_is_read(chats: Path):
    found = list(read_chats(chats / "0.jsonl"))
    assert [one.problem for one in found] == ["", "", "", "", "bad line", ""]
    assert found[0].turns[1] == ("assistant", "on **a mat**.")
    assert [role for role, _ in found[1].turns] == ["system", "user", "assistant", "user", "assistant"]
    assert found[2].turns == [("user", "what is there?"), ("assistant", "A mat.")]
    assert next(read_chats(chats / "1.jsonl")).turns == [("user", "the cat"), ("assistant", "the cat")]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Look:\n```\nx\n```", "code"),
        ("use `ls -l` here", "code"),
        ("def f(x):\n    return x", "code"),
        ("| a | b |\n|---|---|", "table"),
        ("Then $x^2$ is it", "maths"),
        ("so x = y + 1", "maths"),
        ("- one\n- two\n- three", "list"),
        ("see https://a.b", "address"),
        ("word " * 100, "too long"),
        ("...", "no words"),
        ("It costs five dollars, doesn't it?", ""),
        ("A well-known fact: cats sleep; dogs bark.", ""),
        ("我们今天去哪里？", ""),
    ],
)
def test_what_is_not_said_aloud_is_told_from_what_is(text: str, reason: str):
    assert unsayable(text, 60) == reason


def test_replies_are_shortened_to_whole_sentences():
    assert shortened("One two three. Four five! Six seven eight.", 5) == "One two three. Four five!"
    assert shortened("One two three four.", 2) == "One two three four."
    assert shortened("Mr. Smith is 3.5 m tall. Yes.", 20) == "Mr. Smith is 3.5 m tall. Yes."


def test_a_dialogue_ends_before_what_can_not_be_said():
    both = sayable_chat(
        Chat("a", [("user", "hello"), ("assistant", "hi."), ("user", "code?"), ("assistant", "`x`")]), SETTINGS
    )
    assert both.turns == [("user", "hello"), ("assistant", "hi.")] and not both.problem
    assert sayable_chat(Chat("a", [("user", "hello"), ("assistant", "`x`")]), SETTINGS).problem == "code"
    assert sayable_chat(Chat("a", [("assistant", "a"), ("user", "b")]), SETTINGS).problem == "turns out of order"
    assert sayable_chat(Chat("a", [("user", "hello")]), SETTINGS).problem == "no reply"
    many = Chat("a", [("user", "hello"), ("assistant", "hi.")] * 9)
    assert len(sayable_chat(many, SETTINGS).turns) == 8


def test_both_sides_are_spoken_in_their_voices(tokenizer: TextTokenizer, chats: Path, unbroken: Path):
    report = job(tokenizer, chats, unbroken, SETTINGS).report()
    assert report is not None and report["counts"]["documents_in"] == 15 and report["counts"]["documents"] == 12
    assert report["reasons"] == {
        "document: bad line": 1, "document: maths": 1, "document: no reply": 1,
        "unit: code": 2, "unit: instructions": 1, "unit: maths": 2, "unit: no reply": 1,
    }  # fmt: skip
    assert report["counts"]["units_in"] == 32 and report["counts"]["units"] == 26 and report["counts"]["shortened"] == 1
    assert report["counts"]["spans"] == report["counts"]["spoken"] == 4 + 2 + 2 + 18
    found = [one for file in sorted(unbroken.glob("*.jsonl")) for one in read_dialogues(file)]
    assert [one.id for one in found][:3] == ["u", "s", str(chats / "0.jsonl") + ":3"]
    assert [turn.text for turn in found[0].turns] == [
        "where is the cat?",
        "on a mat.",
        "and then?",
        "It went far away.",
    ]
    assert [turn.text for turn in found[1].turns] == [
        "what was there to see?",
        "The cat. It sat and sat. It sat and sat.",
    ]
    for one in found:
        voices = [turn.voice for turn in one.turns]
        assert len(set(voices[::2])) == 1 and set(voices[::2]) <= {"anna", "ben"} and set(voices[1::2]) == {"carl"}
        assert all(len(turn.speech) and turn.speech.max() < 64 for turn in one.turns)
    assert len({one.turns[0].voice for one in found}) == 2
    assert len({tuple(one.turns[0].speech) for one in found[3:] if one.turns[0].voice == "anna"}) == 1
    assert found[3].turns[0].speech.tolist() != found[3].turns[1].speech.tolist()  # the voice is in the prompt


def test_killed_anywhere_it_comes_out_the_same(tokenizer: TextTokenizer, chats: Path, unbroken: Path, tmp_path: Path):
    for stop in (1, 9, 20):
        one = job(tokenizer, chats, tmp_path / "talk", SETTINGS)
        engine = speaker(one)
        engine.stop_after = stop
        with pytest.raises(KeyboardInterrupt):
            one.run(engine, 0, 1, Silent())
    one = job(tokenizer, chats, tmp_path / "talk", SETTINGS)
    one.run(speaker(one), 0, 1, Silent())
    assert content(tmp_path / "talk") == content(unbroken)


def test_a_dialogue_whose_turns_can_not_be_spoken_is_counted(tokenizer: TextTokenizer, chats: Path, tmp_path: Path):
    one = job(tokenizer, chats, tmp_path, SETTINGS)
    one.run(speaker(one, fail="always"), 0, 1, Silent())
    report = one.report()
    assert report is not None and report["counts"]["documents"] == 0
    assert report["reasons"]["document: no exchange was spoken"] == 12
    assert report["reasons"]["span: no end"] == report["reasons"]["unit: in documents left out"] == 26


def test_every_turn_that_is_not_said_has_a_reason():
    turns = [("system", "be kind"), *[("user", "hello"), ("assistant", "hi. " * 20)] * 5, ("user", "and?")]
    said = sayable_chat(Chat("a", turns), SETTINGS)
    assert said.left_out == {"instructions": 1, "beyond max_turns": 3} and said.shortened == 4
    assert sayable_chat(Chat("a", [("user", "a"), ("assistant", "b."), ("user", "c")]), SETTINGS).left_out == {
        "no reply": 1
    }


def test_voices_and_template_must_agree(tokenizer: TextTokenizer, chats: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=r"the template has no \{voice\}"):
        job(tokenizer, chats, tmp_path, SETTINGS, voiced=False)
    with pytest.raises(ValueError, match=r"the template has a \{voice\}"):
        job(tokenizer, chats, tmp_path, ChatSettings())
    plain = job(tokenizer, chats, tmp_path, ChatSettings(), voiced=False)
    raw = next(plain.documents_of(chats / "1.jsonl"))
    assert np.array_equal(plain.prompt(raw, plain.spans_of(raw)[0])[0], plain.asked("the cat")[0])
