"""Spoken dialogues to rows: every dialogue in a row or counted by reason, only replies learnt."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from datamodules.dialogues import Dialogue, Said, dialogue_files, dialogue_line, read_dialogues
from speechlm import pack
from speechlm.text_tokenizer import TextTokenizer
from speechlm.tokens.rows import RowFolder
from speechlm.tokens.vocab import Vocab
from tests.text_corpus import make_tokenizer

CODES = 64
TALK = [
    Dialogue(
        "d0",
        [
            Said("system", "be kind"),
            Said("user", "the cat sat", np.array([1, 2, 3]), "a"),
            Said("assistant", "on a mat and went far away", np.arange(40) % CODES, "b"),
            Said("user", "<|user|> the <|endoftext|>", np.array([4]), "a"),
            Said("assistant", "the cat", np.arange(9), "b"),
            Said("user", "and then", np.array([63]), "a"),
        ],
        {"source": "made up"},
    ),
    Dialogue("silent", [Said("user", "a"), Said("assistant", "b")]),
    Dialogue("no reply", [Said("user", "a", np.array([1]))]),
    Dialogue("long", [Said("user", "a", np.arange(60)), Said("assistant", "b", np.arange(60))]),
    Dialogue("wrong code", [Said("user", "a", np.array([CODES])), Said("assistant", "b", np.array([1]))]),
]


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    kit = tmp_path_factory.mktemp("chat")
    make_tokenizer(kit / "tokenizer")
    (kit / "talk").mkdir()
    lines = [dialogue_line(one) for one in TALK]
    (kit / "talk" / "0.jsonl").write_text("\n".join([*lines, '{"turns": [{"role": "cat", "text": "miaow"}]}']) + "\n")
    return kit


def packed(kit: Path, out: Path, **chat: object) -> Path:
    source = {"kind": "chat", "paths": [str(kit / "talk")], "chat": {"text_block": 6, "speech_block": 4, **chat}}
    values = {
        "out": str(out), "text_tokenizer": str(kit / "tokenizer"), "num_speech": CODES, "sources": {"talk": source},
        "packing": {"row_len": 120, "window_tokens": 1024},
    }  # fmt: skip
    config = out.with_suffix(".yaml")
    config.write_text(yaml.safe_dump(values))
    pack.main(["--config", str(config)])
    return out / "talk"


def learnt(folder: Path) -> tuple[list[int], list[int]]:
    """All ids of the first document, and those of them that are predicted."""
    row = RowFolder(folder, verify=True).row(0)
    ids = row.ids[: row.document_ends[0]]
    return ids.tolist(), [i for a, b in row.loss_spans for i in row.ids[a:b].tolist() if b <= row.document_ends[0]]


def test_what_is_read_is_what_was_written(kit: Path):
    found = list(read_dialogues(kit / "talk" / "0.jsonl"))
    assert [one.id for one in found[:5]] == [one.id for one in TALK]
    assert [dialogue_line(one) for one in found[:5]] == [dialogue_line(one) for one in TALK]
    assert found[0].about == {"source": "made up"} and found[0].turns[1].voice == "a"
    assert found[5].problem.startswith("bad line: ValueError: a turn is of system, user, assistant, got 'cat'")


def test_replies_and_their_ends_are_learnt_and_what_can_not_be_used_is_counted(kit: Path, tmp_path: Path):
    folder = packed(kit, tmp_path / "rows")
    vocab, tokenizer = Vocab.load(tmp_path / "rows" / "vocab.json"), TextTokenizer(kit / "tokenizer")
    counts = json.loads((folder / "index.json").read_text())["counts"]
    assert counts["documents_in"] == 6 and counts["documents"] == 1
    assert counts["skipped"] == {
        "no speech of the user": 1, "no reply": 1, "dialogue longer than a row": 1, "ids do not fit": 1, "bad line": 1
    }  # fmt: skip
    ids, predicted = learnt(folder)
    first, second = tokenizer.encode([TALK[0].turns[2].text, TALK[0].turns[4].text])
    user = vocab.control("<|user|>")
    text = [i for i in predicted if i < vocab.num_text]
    assert text == [*first.tolist(), *second.tolist()]
    speech = [i - vocab.speech_offset for i in predicted if i >= vocab.speech_offset]
    assert speech == [*(np.arange(40) % CODES).tolist(), *range(9)]
    assert predicted.count(user) == 2 and ids.count(user) == 3 and ids[-1] == user
    assert vocab.speech_offset + 63 not in ids  # the last question has no reply


def test_the_user_types_where_that_is_asked_for_and_can_not_write_control_tokens(kit: Path, tmp_path: Path):
    folder = packed(kit, tmp_path / "rows", user="text")
    vocab = Vocab.load(tmp_path / "rows" / "vocab.json")
    ids, predicted = learnt(folder)
    assert ids.count(vocab.control("<|user|>")) == 3
    assert sum(i >= vocab.speech_offset for i in ids) == sum(i >= vocab.speech_offset for i in predicted) == 49


def test_two_copies_learn_text_and_speech(kit: Path, tmp_path: Path):
    vocab_of = [packed(kit, tmp_path / loss, loss=loss) for loss in ("all", "text", "speech")]
    offset = Vocab.load(tmp_path / "all" / "vocab.json").speech_offset
    whole, text, speech = (learnt(folder)[1] for folder in vocab_of)
    assert text == [i for i in whole if i < offset - 7] and sorted(text + speech) == sorted(whole)


def test_a_folder_without_dialogues_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="has no dialogues"):
        dialogue_files([str(tmp_path)])
    with pytest.raises(FileNotFoundError, match="there is no file or folder"):
        dialogue_files([str(tmp_path / "x")])
