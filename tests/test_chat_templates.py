"""Conversations as ids: what is written, what of it is predicted, and that talking continues what was trained."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechlm.tokens.chat_templates import CHAT_TEMPLATES, Chat, ChatTemplate, Turn, named_template
from speechlm.tokens.vocab import Vocab

VOCAB = Vocab(num_text=1000, num_speech=64)
SPECIALS = {"<|im_start|>": 990, "<|im_end|>": 991, "[gMASK]": 992, "<sop>": 993}
USER, ASSISTANT, SYSTEM, BEGIN, END = (
    VOCAB.control(f"<|{name}|>") for name in ("user", "assistant", "system", "begin_of_audio", "end_of_audio")
)
SPEECH_0 = VOCAB.speech_offset


def letters(text: str) -> list[int]:
    """A text tokenizer whose ids are the characters' numbers."""
    return [ord(c) for c in text]


def chat(name: str = "plain", k: int | None = 2, m: int | None = 4) -> Chat:
    return Chat(named_template(name, k, m), VOCAB, letters, SPECIALS)


def said(text: str) -> tuple[str, np.ndarray]:
    return ("text", np.array(letters(text), np.int64))


def sounds(*codes: int) -> tuple[str, np.ndarray]:
    return ("speech", np.array(codes, np.int64))


def turns(c: Chat) -> list[Turn]:
    """Two questions and two replies, the first question spoken."""
    return [
        Turn("user", (sounds(1, 2),)),
        c.reply(np.array(letters("abc")), np.arange(10)),
        Turn("user", (said("d"),)),
        c.reply(np.array(letters("e")), np.arange(3)),
    ]


def test_a_reply_has_blocks_of_text_and_speech_until_its_text_ends():
    parts = chat().reply(np.array(letters("abc")), np.arange(10)).parts
    assert [(kind, ids.tolist()) for kind, ids in parts] == [
        ("text", [97, 98]), ("speech", [0, 1, 2, 3]), ("text", [99]), ("speech", [4, 5, 6, 7, 8, 9])
    ]  # fmt: skip


@given(st.integers(0, 60), st.integers(0, 300), st.integers(1, 20), st.integers(1, 40))
def test_a_reply_loses_and_doubles_nothing(num_text: int, num_speech: int, k: int, m: int):
    text, speech = np.arange(num_text), np.arange(num_speech) % 64
    try:
        parts = chat(k=k, m=m).reply(text, speech).parts
    except ValueError:
        assert num_text > k and num_speech <= (-(-num_text // k) - 1) * m
        return
    for kind, whole in (("text", text), ("speech", speech)):
        joined = [ids for one, ids in parts if one == kind]
        assert np.concatenate([np.zeros(0, np.int64), *joined]).tolist() == whole.tolist()


def test_speech_that_ends_before_its_text_is_refused():
    with pytest.raises(ValueError, match=re.escape("4 speech tokens end before its 4 ids of text in blocks of 2:4")):
        chat().reply(np.arange(4), np.arange(4))


def test_replies_and_their_ends_are_predicted_and_nothing_else():
    c = chat()
    written = c.conversation(turns(c))
    assert written.ids.tolist() == [
        USER, BEGIN, SPEECH_0 + 1, SPEECH_0 + 2, END, ASSISTANT,
        97, 98, *(SPEECH_0 + np.arange(4)), 99, *(SPEECH_0 + np.arange(4, 10)),
        USER, 100, ASSISTANT, 101, *(SPEECH_0 + np.arange(3)), USER,
    ]  # fmt: skip
    assert written.spans == ((6, 20), (22, 27))
    assert [written.ids[end - 1] for _, end in written.spans] == [c.end, c.end]


def test_two_copies_share_out_what_one_predicts():
    c = chat()
    whole, text, speech = (c.conversation(turns(c), loss) for loss in ("all", "text", "speech"))
    masks = [np.zeros(len(whole.ids), int) for _ in range(3)]
    for mask, written in zip(masks, (whole, text, speech), strict=True):
        assert written.ids.tolist() == whole.ids.tolist()
        for begin, end in written.spans:
            mask[begin:end] = 1
    assert (masks[0] == masks[1] + masks[2]).all()
    assert whole.ids[masks[1] == 1].tolist() == [97, 98, 99, 101]  # the ends stand behind speech, and belong to it


def test_the_end_of_a_reply_of_text_alone_is_learnt_with_the_text():
    c = chat("plain_text")
    written = c.conversation([Turn("user", (said("a"),)), c.reply(np.array([98]), np.arange(3))], "text")
    assert written.ids.tolist() == [USER, 97, ASSISTANT, 98, USER] and written.spans == ((3, 5),)


@pytest.mark.parametrize("name", sorted(CHAT_TEMPLATES))
def test_a_prompt_is_the_beginning_of_the_conversation_it_was_trained_on(name: str):
    c = chat(name)
    conversation = turns(c)
    whole = c.conversation(conversation)
    for count in (1, 3):
        prompt = c.prompt(conversation[:count])
        assert whole.ids[: len(prompt)].tolist() == prompt.tolist()
        assert len(prompt) in [begin for begin, _ in whole.spans]
    assert whole.ids[-1] == c.end


def test_speech_alone_answers_speech():
    c = chat("plain_speech")
    written = c.conversation([Turn("user", (sounds(7),)), c.reply(np.array([98]), np.array([5]))])
    assert written.ids.tolist() == [USER, BEGIN, SPEECH_0 + 7, END, ASSISTANT, SPEECH_0 + 5, USER]


def test_a_turn_that_is_closed_by_several_ids_is_closed_whole():
    c = chat("chatml")
    newline = ord("\n")
    written = c.conversation([Turn("user", (said("a"),)), Turn("assistant", (said("b"),)), *turns(c)[2:]])
    opening = letters("assistant\n")
    assert written.ids[: 30].tolist() == [
        990, *letters("user\n"), 97, 991, newline, 990, *opening, 98, 991, newline, 990, *letters("user\n"), 100, 991,
    ][:30]  # fmt: skip
    assert written.ids[written.spans[0][0] : written.spans[0][1]].tolist() == [98, 991]


def test_the_released_form_is_written_to_the_token():
    c = chat("glm4voice", None, None)
    assert (c.text_block, c.speech_block, c.end) == (13, 26, USER)
    first = c.instructed([Turn("user", (sounds(3),))])
    system = (
        "\nUser will provide you with a speech instruction. Do it step by step. First, think about the instruction and respond "
        "in a interleaved manner, with 13 text token followed by 26 audio tokens. "
    )
    reply = letters("streaming_transcription\n")
    begins = [992, 993, SYSTEM, *letters(system), USER, 10, BEGIN, SPEECH_0 + 3, END, ASSISTANT, *reply]
    assert c.prompt(first).tolist() == begins
    again = [*first, Turn("assistant", (said("hi"), sounds(9))), Turn("user", (said("bye"),))]
    history = [*begins, *letters("hi"), SPEECH_0 + 9]  # the last prompt and its completion, then the next turn
    assert c.prompt(again).tolist() == [*history, USER, 10, *letters("bye"), ASSISTANT, *reply]
    typed = c.instructed([Turn("user", (said("x"),))])
    typed_system = letters(system.replace("a speech", "a text").rstrip(" "))
    assert c.prompt(typed).tolist()[: 5 + len(typed_system)] == [992, 993, SYSTEM, *typed_system, USER, 10]


def test_instructions_of_ones_own_stay():
    own = [Turn("system", (said("be brief"),)), Turn("user", (said("x"),))]
    assert chat("glm4voice").instructed(own) == own
    assert len(chat("plain").instructed(own[1:])) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"user": "<|user|>"}, "have {said} once each"),
        ({"close": ""}, "`close` is not empty"),
        ({"text_block": 0, "speech_block": 0}, "got 0:0"),
        ({"speech_block": -1}, "got 13:-1"),
    ],
)
def test_a_template_that_can_not_be_written_is_refused(changes: dict, message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        ChatTemplate(**changes)


def test_what_can_not_be_asked_is_refused():
    with pytest.raises(ValueError, match=r"names <\|shout\|>; there are"):
        Chat(ChatTemplate(assistant="<|shout|>"), VOCAB, letters)
    with pytest.raises(ValueError, match="no chat template 'song'; there are plain"):
        named_template("song")
    c = chat()
    with pytest.raises(ValueError, match="nothing to reply to"):
        c.prompt(turns(c)[:2])
    with pytest.raises(ValueError, match="ends with a reply"):
        c.conversation(turns(c)[:1])
