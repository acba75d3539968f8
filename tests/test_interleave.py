"""The span plan keeps its promises for any text: ratio, distance, every character once, and the same in every process."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechlm.tokens.interleave import Document, assemble, plan, segments, words_of
from speechlm.tokens.vocab import Vocab

VOCAB = Vocab(num_text=100, num_speech=16)
TEXTS = st.text(st.one_of(st.characters(), st.sampled_from(" \n\t.,x我是。ไทยกー")), max_size=400)
HOSTILE = [
    "",
    " ",
    "\0",
    "\ud800 lone",
    "x" * 1_000_000,
    "<|begin_of_audio|> <|audio_3|>",
    "שלום עולם " * 9,
    "👩‍👩‍👧 " * 20,
]


def words(count: int) -> Document:
    """A document of so many words."""
    return Document(f"doc {count}", " ".join(f"w{i}" for i in range(count)))


@given(TEXTS, st.integers(0, 3), st.integers(0, 5), st.floats(0, 1), st.floats(0.5, 20))
@settings(max_examples=300, deadline=None)
def test_no_character_is_lost_or_doubled_and_spans_never_touch(
    text: str, epoch: int, seed: int, ratio: float, mean: float
):
    spans = plan(Document("a", text), epoch, seed, ratio, mean)
    made = segments(text, spans)
    assert "".join(text[part.start : part.end] for part in made) == text
    assert [part.kind for part in made if part.kind == "speech"] == ["speech"] * len(spans)
    assert all(a.kind != b.kind for a, b in itertools.pairwise(made))
    units = words_of(text)
    starts, ends = {start for start, _ in units}, {end for _, end in units}
    assert all(span.start in starts and span.end in ends and text[span.start : span.end].strip() for span in spans)
    assert not spans or len(units) > sum(span.start <= start < span.end for span in spans for start, _ in units)


@given(
    st.one_of(
        TEXTS,
        st.text(
            st.sampled_from("ab.\u00e9\u2019 \n\t\x0b\x1c\x1f\x85\xa0\u1680\u2003\u2028\u3000\ufeff\u200b\U00010400")
        ),
    )
)
@settings(max_examples=300, deadline=None)
def test_a_plan_counts_in_words_whichever_way_they_are_found(text: str):
    for seed in range(3):
        assert plan(Document("a", text), 0, seed, mean_span=2) == plan(
            Document("a", text, words_of(text)), 0, seed, mean_span=2
        )


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: repr(text[:12]))
def test_hostile_text_is_only_text(text: str):
    spans = plan(Document(text, text), 0, 0)
    assert "".join(text[part.start : part.end] for part in segments(text, spans)) == text


def spoken(document: Document, *arguments: float) -> int:
    """Units inside spans."""
    return sum(len(words_of(document.text[s.start : s.end])) for s in plan(document, 0, *arguments))


@pytest.mark.parametrize("ratio", [0.2, 0.3, 0.4])
def test_the_share_of_speech_is_the_ratio_and_at_most_one_span_more(ratio: float):
    for seed in range(50):
        share = spoken(words(500), seed, ratio) / 500
        assert ratio <= share < ratio + 30 / 500
    assert spoken(words(100_000), 0, ratio) / 100_000 == pytest.approx(ratio, abs=3e-4)


def test_span_lengths_are_poisson():
    document = words(200_000)
    spans = plan(document, 0, 1)
    lengths = np.array([len(words_of(document.text[s.start : s.end])) for s in spans[:-1]])
    assert lengths.mean() == pytest.approx(10, abs=0.15) and lengths.var() == pytest.approx(10, abs=0.6)
    assert 0.9 < (np.diff([s.start for s in spans]) > 0).mean() <= 1


def test_every_place_in_the_document_is_spoken_equally_often():
    document = Document("d", "我" * 60)
    counts = np.zeros(60)
    for seed in range(3000):
        for span in plan(document, 0, seed, 0.3, 4.0):
            counts[span.start : span.end] += 1
    middle = counts[15:45]
    assert middle.std() / middle.mean() < 0.05
    assert counts[0] == pytest.approx(counts[-1], rel=0.15)


def test_documents_epochs_and_seeds_have_plans_of_their_own():
    document = words(300)
    plans = [
        plan(document, 0, 0),
        plan(document, 1, 0),
        plan(document, 0, 1),
        plan(Document("other", document.text), 0, 0),
    ]
    assert len({tuple(spans) for spans in plans}) == 4
    assert plan(document, 0, 0) == plans[0]


def test_another_process_makes_the_same_plan():
    code = (
        "from speechlm.tokens.interleave import Document, plan\n"
        "print([tuple(s) for s in plan(Document('d', 'a b c d e f g h ' * 30), 2, 3)])"
    )
    run = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout for _ in "ab"
    ]
    assert run[0] == run[1] == f"{[tuple(s) for s in plan(Document('d', 'a b c d e f g h ' * 30), 2, 3)]}\n"


def test_the_plan_never_changes_between_versions():
    assert [tuple(s) for s in plan(Document("d", "a b c d e f g h " * 6), 0, 0)] == [(29, 47), (59, 87)]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 12])
def test_short_documents_keep_some_text(count: int):
    for seed in range(100):
        assert spoken(words(count), seed) < max(1, count)


def test_units_of_the_callers_choice_are_the_boundaries():
    document = Document("d", "北京大学的学生" * 20, [(i, i + 2) for i in range(0, 140, 2)])
    assert all(span.start % 2 == 0 and span.end % 2 == 0 for span in plan(document, 0, 0))


def test_words_keep_the_space_before_them_and_unspaced_scripts_are_cut_by_the_character():
    text = " Hello,  world 你好。ok"
    assert [text[a:b] for a, b in words_of(text)] == [" Hello,", "  world", " 你", "好。", "ok"]


@pytest.mark.parametrize(("ratio", "mean"), [(-0.1, 10), (1.1, 10), (0.3, 0), (0.3, 1e9)])
def test_impossible_settings_are_refused(ratio: float, mean: float):
    with pytest.raises(ValueError, match="edit the config"):
        plan(words(10), 0, 0, ratio, mean)


def test_text_and_speech_meet_in_one_id_space_with_or_without_boundaries():
    parts = [("text", np.array([1, 2])), ("speech", np.array([0, 15])), ("text", np.array([99]))]
    assert assemble(parts, VOCAB).tolist() == [1, 2, 100, 107, 122, 101, 99]
    assert assemble(parts, VOCAB, boundaries=False).tolist() == [1, 2, 107, 122, 99]
    for part in [("speech", np.array([16])), ("text", np.array([100])), ("sound", np.array([1]))]:
        with pytest.raises(ValueError, match=r"outside|'sound'"):
            assemble([part], VOCAB)
