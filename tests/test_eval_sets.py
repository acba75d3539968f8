"""Evaluation sets in the layout they are published in become items."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import soundfile

from speechlm import prepare_eval
from speechlm.conservation import Unaccounted
from speechlm.evals.items import read_items
from speechlm.prepare_eval import main, speak_items
from tests.audio_corpus import RATE_HZ, tone


def recording(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, tone(0.1, seed=seed), RATE_HZ)


def table(path: Path, rows: Sequence[dict[str, str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def prepared(tmp_path: Path, *args: str) -> list[dict]:
    out = tmp_path / "items" / "set.jsonl"
    main([*args, "--out", str(out)])
    return read_items(out).items  # which asks for every recording that is named


@pytest.fixture
def zerospeech(tmp_path: Path) -> Path:
    """Two words by two voices, the second word out of the vocabulary, and one pair of sentences."""
    words = []
    for number, frequency in (("1", "12.5"), ("2", "oov")):
        for voice in ("A", "B"):
            for correct, word in (("1", f"word{number}"), ("0", f"wrod{number}")):
                name = f"{word}-{voice}"
                recording(tmp_path / "lexical" / "dev" / f"{name}.wav")
                words.append({"id": number, "filename": name, "voice": voice, "frequency": frequency, "word": word,
                              "correct": correct})  # fmt: skip
    table(tmp_path / "lexical" / "dev" / "gold.csv", words)
    sentences = []
    for correct, text in (("0", "the dogs barks"), ("1", "the dogs bark")):
        recording(tmp_path / "syntactic" / "dev" / f"s{correct}.wav")
        sentences.append({"id": "7", "filename": f"s{correct}", "voice": "A", "type": "agreement", "subtype": "x",
                          "transcription": text, "correct": correct})  # fmt: skip
    table(tmp_path / "syntactic" / "dev" / "gold.csv", sentences)
    return tmp_path


def test_swuggy_pairs_a_word_with_the_nonword_of_its_voice(zerospeech: Path) -> None:
    items = prepared(zerospeech, "swuggy", "--corpus", str(zerospeech))
    assert [(i["id"], i["group"]) for i in items] == [
        ("1-A", "in-vocabulary"), ("1-B", "in-vocabulary"), ("2-A", "oov"), ("2-B", "oov"),
    ]  # fmt: skip
    assert items[1]["positive"]["text"] == "word1" and items[1]["negative"]["text"] == "wrod1"
    assert items[1]["negative"]["audio"].endswith("wrod1-B.wav")


def test_sblimp_knows_the_right_sentence_by_its_column_not_its_place(zerospeech: Path) -> None:
    (item,) = prepared(zerospeech, "sblimp", "--corpus", str(zerospeech))
    assert item["positive"]["text"] == "the dogs bark" and item["group"] == "agreement"


def test_a_word_without_its_nonword_is_refused(zerospeech: Path) -> None:
    path = zerospeech / "lexical" / "dev" / "gold.csv"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")
    with pytest.raises(SystemExit, match="no pair of id 2 and voice B"):
        prepared(zerospeech, "swuggy", "--corpus", str(zerospeech))


@pytest.fixture
def stories(tmp_path: Path) -> Path:
    rows = [
        {"InputStoryid": f"s{n}", **{f"InputSentence{k}": f"Sentence {k} of {n}." for k in range(1, 5)},
         "RandomFifthSentenceQuiz1": f"First of {n}.", "RandomFifthSentenceQuiz2": f"Second of {n}.",
         "AnswerRightEnding": str(1 + n % 2)}
        for n in range(5)
    ]  # fmt: skip
    return table(tmp_path / "cloze_test_val.csv", rows)


def test_a_story_has_the_ending_its_table_calls_right(tmp_path: Path, stories: Path) -> None:
    items = prepared(tmp_path, "story_cloze", "--table", str(stories))
    assert [i["positive"]["text"] for i in items[:2]] == ["First of 0.", "Second of 1."]
    assert [i["negative"]["text"] for i in items[:2]] == ["Second of 0.", "First of 1."]
    assert items[0]["context"]["text"] == "Sentence 1 of 0. Sentence 2 of 0. Sentence 3 of 0. Sentence 4 of 0."


def test_the_wrong_ending_of_a_topic_is_the_right_one_of_another_story(tmp_path: Path, stories: Path) -> None:
    items = prepared(tmp_path, "story_cloze", "--table", str(stories), "--topic", "true")
    right = {i["positive"]["text"] for i in items}
    assert {i["negative"]["text"] for i in items} == right  # each once
    assert all(i["negative"] != i["positive"] for i in items)
    assert items == prepared(tmp_path, "story_cloze", "--table", str(stories), "--topic", "true")


def test_spoken_story_cloze_has_a_context_where_it_has_files_for_it(tmp_path: Path) -> None:
    corpus = tmp_path / "sSC"
    for part in ("correct", "incorrect", "mutual"):
        recording(corpus / f"3_{part}.wav")
        (corpus / f"3_{part}.txt").write_text(f"words of {part}")
    for part in ("correct", "incorrect"):
        recording(corpus / f"4_{part}.wav")
    with_context, without = prepared(tmp_path, "spoken_story_cloze", "--corpus", str(corpus))
    assert with_context["context"]["text"] == "words of mutual" and "context" not in without
    recording(corpus / "5_incorrect.wav")
    with pytest.raises(SystemExit, match=r"without <n>_correct.wav for 5"):
        prepared(tmp_path, "spoken_story_cloze", "--corpus", str(corpus))


def test_salmon_groups_by_part(tmp_path: Path) -> None:
    for part in ("gender_consistency", "bg_alignment"):
        for n in (10, 9):
            recording(tmp_path / part / f"sample_{n}_0.wav")
            recording(tmp_path / part / f"sample_{n}_1.wav")
    items = prepared(tmp_path, "salmon", "--corpus", str(tmp_path))
    assert [i["id"] for i in items] == [
        "bg_alignment-9",
        "bg_alignment-10",
        "gender_consistency-9",
        "gender_consistency-10",
    ]
    assert items[0]["positive"]["audio"].endswith("sample_9_0.wav")
    recording(tmp_path / "bg_alignment" / "sample_11_1.wav")
    with pytest.raises(SystemExit, match=r"sample_11_1.wav has no sample_11_0.wav"):
        prepared(tmp_path, "salmon", "--corpus", str(tmp_path))


def test_web_questions_have_every_description_as_an_answer(tmp_path: Path) -> None:
    lisp = '(list (description "Jazmyn Bieber") (description Jaxon) (description "the \\"B\\""))'
    path = tmp_path / "web.json"
    path.write_text(json.dumps([{"utterance": "what is the name?", "targetValue": lisp, "url": "x"}]))
    (item,) = prepared(tmp_path, "web_questions", "--path", str(path))
    assert item["answers"] == ["Jazmyn Bieber", "Jaxon", 'the "B"'] and item["question"]["text"] == "what is the name?"


def test_trivia_qa_has_value_and_aliases_once_each(tmp_path: Path) -> None:
    answer = {"Value": "Sunset Blvd", "Aliases": ["Sunset Boulevard", "Sunset Blvd"], "NormalizedValue": "sunset blvd"}
    path = tmp_path / "trivia.json"
    path.write_text(json.dumps({"Data": [{"Question": "Which street?", "QuestionId": "tc_33", "Answer": answer}]}))
    (item,) = prepared(tmp_path, "trivia_qa", "--path", str(path))
    assert item["answers"] == ["Sunset Blvd", "Sunset Boulevard"] and item["id"] == "tc_33"


def test_llama_questions_take_recordings_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    rows = [{"question": f"question {n}?", "answer": str(n)} for n in range(11)]
    path = table(tmp_path / "llama.csv", rows)
    for n in range(11):
        recording(tmp_path / "audio" / f"q{n}.wav")
    items = prepared(tmp_path, "llama_questions", "--table", str(path), "--audio", str(tmp_path / "audio"))
    assert [i["question"]["audio"].rpartition("/")[2] for i in items] == [f"q{n}.wav" for n in range(11)]
    (tmp_path / "audio" / "q3.wav").unlink()
    with pytest.raises(SystemExit, match="10 recordings"):
        prepared(tmp_path, "llama_questions", "--table", str(path), "--audio", str(tmp_path / "audio"))


def test_seed_tts_reads_its_list(tmp_path: Path) -> None:
    folder = tmp_path / "en"
    for name in ("prompt-wavs/p.wav", "wavs/one.wav"):
        recording(folder / name)
    (folder / "meta.lst").write_text(
        "one|the prompt|prompt-wavs/p.wav|say this\ntwo|the prompt|prompt-wavs/p.wav|and this\n"
    )
    one, two = prepared(tmp_path, "seed_tts", "--corpus", str(tmp_path), "--language", "en")
    assert (
        one["speech"]["text"] == "say this"
        and one["speech"]["audio"].endswith("one.wav")
        and "audio" not in two["speech"]
    )


def test_general_qa_leaves_out_other_sets_and_mathematics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alpaca = tmp_path / "alpaca_eval.json"
    alpaca.write_text(json.dumps([{"dataset": d, "instruction": d} for d in ("helpful_base", "koala")]))
    vicuna = tmp_path / "question.jsonl"
    lines = [{"question_id": n, "category": c, "turns": [c]} for n, c in enumerate(("writing", "math"))]
    vicuna.write_text("\n".join(map(json.dumps, lines)))
    items = prepared(tmp_path, "general_qa", "--alpaca", str(alpaca), "--vicuna", str(vicuna))
    assert [i["instruction"]["text"] for i in items] == ["helpful_base", "writing"]
    said = "4 items found = 2 written + 2 left out (1 of math, 1 of other sets than helpful_base)"
    assert said in capsys.readouterr().out


def test_an_item_that_is_neither_written_nor_left_out_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [{"id": str(n), "question": {"text": "a"}} for n in range(3)]
    prepare_eval.write(items, tmp_path / "all.jsonl")
    monkeypatch.setattr(prepare_eval, "write_items", lambda out, kept: len(kept) - 1)
    with pytest.raises(Unaccounted, match=r"3 items found = 2 written .* leaves 1 unexplained"):
        prepare_eval.write(items, tmp_path / "all.jsonl")


def test_knowledge_draws_evenly_and_the_same_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sets = []
    for name in ("a", "b", "c"):
        sets.append(tmp_path / f"{name}.jsonl")
        rows = [{"id": str(n), "question": {"text": f"{name}{n}?"}, "answers": [str(n)]} for n in range(20)]
        sets[-1].write_text("\n".join(map(json.dumps, rows)))
    command = ["knowledge", "--sets", json.dumps(list(map(str, sets))), "--count", "10"]
    items = prepared(tmp_path, *command)
    assert [sum(i["group"] == g for i in items) for g in "abc"] == [4, 3, 3]
    capsys.readouterr()
    assert items == prepared(tmp_path, *command) and len({i["id"] for i in items}) == 10
    assert "60 items found = 10 written + 50 left out (50 not drawn)" in capsys.readouterr().out


def test_a_cut_manifest_becomes_recordings_with_texts_and_speakers(tmp_path: Path) -> None:
    items = prepared(tmp_path, "recordings", "--cuts", "assets/asterisk-en/tiny_heldout.jsonl.gz", "--group", "heldout")
    assert items and all(i["speech"]["text"] and i["group"] == "heldout" and i["language"] == "en" for i in items)


def test_what_is_only_written_is_spoken_and_what_can_not_be_is_left_out() -> None:
    class Speaker:
        def speak(self, texts: Sequence[str], languages: Sequence[str]) -> list[list[int] | None]:
            return [None if text == "unsayable" else [len(text)] for text in texts]

    items = [
        {"id": "a", "question": {"text": "abc"}, "answers": ["x"]},
        {"id": "b", "question": {"text": "unsayable"}, "answers": ["x"]},
        {"id": "c", "question": {"text": "kept", "audio": "c.wav"}, "answers": ["x"]},
    ]
    kept = speak_items(items, Speaker(), "h")
    assert [i["id"] for i in kept] == ["a", "c"]
    assert kept[0]["question"] == {"text": "abc", "tokens": [3], "made_by": "h"} and "tokens" not in kept[1]["question"]
