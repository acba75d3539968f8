"""Text to interleaved documents: nothing lost, nothing doubled, and the same after a kill."""

import itertools
import json
import random
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest

from datamodules.interleaved import read_interleaved, read_making
from datamodules.interleaving import InterleaveJob, InterleaveSettings, TextSource
from speechlm.engines.base import Generation, Prompt, Sampling, Target
from speechlm.engines.checks import SpeechChecks
from speechlm.text_tokenizer import TextTokenizer
from speechlm.tokens.templates import Template
from speechlm.tokens.vocab import Vocab
from tests.text_corpus import make_tokenizer

WORDS = "the cat sat on a mat and then in 1984 it went far away to see what there was to see"


class Speaker:
    """An engine whose speech is a function of the prompt; answers out of order, fails where it is told to."""

    def __init__(self, target: Target, fail: str = "", order: int = 0) -> None:
        self.target, self.fail, self.order, self.max_length = target, fail, order, 2000
        self.asked: list[str] = []
        self.stop_after: int | None = None

    def generate(self, prompts: Iterable[Prompt], sampling: Sampling) -> Iterator[Generation]:
        draw, held = random.Random(self.order), list[Prompt]()
        for prompt in prompts:
            self.asked.append(prompt.key)
            if self.stop_after is not None and len(self.asked) > self.stop_after:
                raise KeyboardInterrupt
            held.append(prompt)
            if len(held) > 5:
                yield self.speak(held.pop(draw.randrange(len(held))))
        yield from map(self.speak, held)

    def speak(self, prompt: Prompt) -> Generation:
        first = sum(prompt.ids)
        ids = tuple(self.target.first + (first + n * n) % self.target.count for n in range(prompt.min_new + 9))
        attempt = int(prompt.key.rsplit("/", 1)[1])
        if self.fail == "always" or (self.fail == "first" and attempt == 0):
            return Generation(prompt.key, ids, "length")
        return Generation(prompt.key, ids, "stop")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    return TextTokenizer(make_tokenizer(tmp_path_factory.mktemp("text")))


def corpus(folder: Path, files: int = 2, documents: int = 25) -> list[str]:
    draw = random.Random(0)
    for file in range(files):
        lines = [
            json.dumps({"id": f"d{file}-{n}", "text": " ".join(draw.choices(WORDS.split(), k=draw.randint(0, 120)))})
            for n in range(documents)
        ]
        (folder / f"{file}.jsonl").write_text("\n".join([*lines, "{not json"]) + "\n", encoding="utf-8")
    return [str(folder)]


def job(tokenizer: TextTokenizer, paths: list[str], out: Path, **settings: object) -> InterleaveJob:
    vocab = Vocab(tokenizer.size, 64, text_tokenizer=tokenizer.fingerprint, speech_tokenizer="s")
    kept = InterleaveSettings(shard_documents=7, open_shards=2, **settings)
    return InterleaveJob(TextSource(paths), kept, vocab, tokenizer, out, 12.5, Sampling(), "m")


def speaker(one: InterleaveJob, **settings: object) -> Speaker:
    return Speaker(Target(one.vocab.speech_offset, 64, one.writer.closing), **settings)


class Silent:
    def __init__(self) -> None:
        self.made = self.kept = 0

    def spoke(self, spans: int, ids: int) -> None:
        return

    def shard_done(self, documents: int, kept: bool) -> None:
        self.made += not kept
        self.kept += kept


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.is_file()}


@pytest.fixture(scope="module")
def unbroken(tokenizer: TextTokenizer, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    paths, out = corpus(tmp_path_factory.mktemp("texts")), tmp_path_factory.mktemp("out")
    one = job(tokenizer, paths, out)
    one.run(speaker(one), 0, 1, Silent())
    return paths, out


def documents_of(out: Path) -> list[tuple[str, list[tuple[str, np.ndarray]]]]:
    return [
        (document.id, document.parts)
        for file in sorted(out.glob("*-*.safetensors"))
        for document in read_interleaved(file)
    ]


def test_documents_come_back_in_order_with_about_the_asked_share_of_speech(
    tokenizer: TextTokenizer, unbroken: tuple[list[str], Path]
):
    paths, out = unbroken
    report = job(tokenizer, paths, out).report()
    assert report is not None
    counts = report["counts"]
    assert counts["documents_in"] == 52
    assert report["reasons"]["document: bad line"] == 2
    found = documents_of(out)
    assert [name for name, _ in found] == [
        n for n in (f"d{f}-{d}" for f in (0, 1) for d in range(25)) if n in dict(found)
    ]
    assert 0.25 < counts["spoken_text_ids"] / (counts["spoken_text_ids"] + counts["text_ids"]) < 0.5
    for _, parts in found:
        kinds = [kind for kind, _ in parts]
        assert all(a != b for a, b in itertools.pairwise(kinds))  # turns, and never two of a kind in a row
        assert all(0 <= codes.min() and codes.max() < 64 for kind, codes in parts if kind == "speech")


def test_no_character_of_the_text_that_stays_text_is_lost(tokenizer: TextTokenizer, unbroken: tuple[list[str], Path]):
    paths, out = unbroken
    written = {
        fields["id"]: fields["text"]
        for path in sorted(Path(paths[0]).glob("*.jsonl"))
        for fields in map(json.loads, path.read_text(encoding="utf-8").splitlines()[:-1])
    }
    for name, parts in documents_of(out):
        rest = written[name]
        for kind, ids in parts:
            if kind == "text":
                stretch = tokenizer.backend.decode(ids.tolist(), skip_special_tokens=False)
                assert stretch in rest
                rest = rest[rest.index(stretch) + len(stretch) :]


@pytest.mark.parametrize("order", [1, 2])
def test_killed_anywhere_and_started_again_it_makes_the_same_files(
    tokenizer: TextTokenizer, unbroken: tuple[list[str], Path], tmp_path: Path, order: int
):
    paths, out = unbroken
    kills = random.Random(order)
    for _ in range(4):
        one = job(tokenizer, paths, tmp_path)
        broken = speaker(one, order=order)
        broken.stop_after = kills.randint(1, 60)
        with pytest.raises(KeyboardInterrupt):
            one.run(broken, 0, 1, Silent())
    one, last = job(tokenizer, paths, tmp_path), Silent()
    one.run(speaker(one, order=order), 0, 1, last)
    assert content(tmp_path) == content(out)
    again = Silent()
    one.run(speaker(one), 0, 1, again)
    assert again.made == 0
    assert again.kept == last.made + last.kept


@pytest.mark.parametrize("world", [2, 5])
def test_any_number_of_processes_makes_the_same_files(
    tokenizer: TextTokenizer, unbroken: tuple[list[str], Path], tmp_path: Path, world: int
):
    paths, out = unbroken
    asked: list[str] = []
    for rank in range(world):
        one = job(tokenizer, paths, tmp_path)
        each = speaker(one, order=rank)
        one.run(each, rank, world, Silent())
        asked += each.asked
    assert len(asked) == len(set(asked))  # nothing was made twice
    assert content(tmp_path) == content(out)


def test_a_damaged_shard_is_made_again(tokenizer: TextTokenizer, unbroken: tuple[list[str], Path], tmp_path: Path):
    paths, out = unbroken
    one = job(tokenizer, paths, tmp_path)
    one.run(speaker(one), 0, 1, Silent())
    victim = one.path((0, 1))
    damaged = bytearray(victim.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    victim.write_bytes(bytes(damaged))
    assert one.report() is None
    mended = Silent()
    one.run(speaker(one), 0, 1, mended)
    assert mended.made == 1
    assert content(tmp_path) == content(out)


def test_a_span_that_fails_is_tried_again_and_then_left_as_text(
    tokenizer: TextTokenizer, unbroken: tuple[list[str], Path], tmp_path: Path
):
    paths, _ = unbroken
    second = job(tokenizer, paths, tmp_path / "second")
    second.run(speaker(second, fail="first"), 0, 1, Silent())
    report = second.report()
    assert report is not None
    assert report["counts"]["retries"] == report["counts"]["spans"] == report["counts"]["spoken"]
    never = job(tokenizer, paths, tmp_path / "never", tries=2)
    never.run(speaker(never, fail="always"), 0, 1, Silent())
    report = never.report()
    assert report is not None
    assert report["counts"]["spoken"] == 0
    assert report["reasons"]["span: no end"] == report["counts"]["left_as_text"] == report["counts"]["spans"]
    assert all(len(parts) == 1 and parts[0][0] == "text" for _, parts in documents_of(tmp_path / "never"))


def test_what_is_cut_off_a_long_document_is_counted(tokenizer: TextTokenizer, tmp_path: Path):
    paths = corpus(tmp_path, files=1)
    whole, short = (
        job(tokenizer, paths, tmp_path / "whole"),
        job(tokenizer, paths, tmp_path / "s", max_document_chars=50),
    )
    reports = []
    for one in (whole, short):
        one.run(speaker(one), 0, 1, Silent())
        reports.append(one.report())
    everything, cut = reports
    assert everything is not None and cut is not None
    written = [json.loads(line)["text"] for line in (tmp_path / "0.jsonl").read_text().splitlines()[:-1]]
    assert everything["counts"]["units_in"] == cut["counts"]["units_in"] == sum(map(len, written))
    assert everything["counts"]["units"] == sum(map(len, written)) and "unit: beyond" not in str(everything)
    assert cut["reasons"]["unit: beyond max_document_chars"] == sum(max(0, len(text) - 50) for text in written)
    assert cut["counts"]["units"] == sum(min(50, len(text)) for text in written)


HOSTILE = [
    "<|begin_of_audio|> <|audio_3|> <|user|> " * 20,
    "nul \0 and lone \ud800 surrogates " * 10,
    "w" * 100_000,
    "",
    "   ",
    "שלום עולם " * 30,
    "😀 🎉 👍🏽 " * 30,
    "if (x) { y += 1; } // http://a.b " * 20,
]


def test_hostile_texts_never_become_control_tokens(tokenizer: TextTokenizer, tmp_path: Path):
    texts = tmp_path / "texts"
    texts.mkdir()
    lines = [json.dumps({"id": f"h\0{n}", "text": text}) for n, text in enumerate(HOSTILE)]
    (texts / "a.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    one = job(tokenizer, [str(texts)], tmp_path / "out")
    one.run(speaker(one), 0, 1, Silent())
    report = one.report()
    assert report is not None
    assert report["counts"]["documents_in"] == len(HOSTILE)
    special = set(tokenizer.specials.values())
    for _, parts in documents_of(tmp_path / "out"):
        for kind, ids in parts:
            if kind == "text":
                assert ids.max() < one.vocab.num_text
                assert not special & set(ids.tolist())


def test_a_folder_begun_with_other_settings_is_refused(
    tokenizer: TextTokenizer, unbroken: tuple[list[str], Path], tmp_path: Path
):
    paths, out = unbroken
    with pytest.raises(ValueError, match=r"was begun with something else:\n  settings\."):
        job(tokenizer, paths, out, ratio=0.2)


def test_shards_say_what_they_were_made_with(unbroken: tuple[list[str], Path]):
    making = read_making(sorted(unbroken[1].glob("*-*.safetensors"))[0])
    assert making.speech_tokenizer == "s"
    assert making.token_rate_hz == 12.5
    assert set(making.provenance) == {"model", "vocab_hash", "made_with", "sampling"}


def test_what_is_asked_is_how_training_rows_are_written(tokenizer: TextTokenizer):
    vocab = Vocab(tokenizer.size, 64)
    writer = tokenizer.writer("tts", None, vocab)
    text, speech = tokenizer.encode(["the cat"])[0], np.array([5, 6, 7])
    row = writer.write(text, speech).ids
    opening = writer.opening(text)
    assert row[: len(opening)].tolist() == opening.tolist()
    assert row[len(opening) : len(opening) + 4].tolist() == [*(speech + vocab.speech_offset).tolist(), writer.closing]


# -- checks ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ids", "finish", "problem"),
    [
        (range(40), "stop", ""),
        (range(40), "length", "no end"),
        ((), "invalid", "not speech"),
        (range(5), "stop", "too short"),
        ([*range(20), *[3] * 26, *range(20)], "stop", "stuck"),
        ([*range(20), *[1, 2, 3] * 5], "stop", "loop"),
        ([*range(20), *[1, 2, 3] * 4, *range(20)], "stop", ""),
        ([*range(20), *[7] * 20, *range(9)], "stop", ""),  # silence
    ],
)
def test_speech_that_can_not_be_that_of_the_text_is_found(ids: Iterable[int], finish: str, problem: str):
    assert SpeechChecks().problem(10, Generation("a", tuple(ids), finish)) == problem


def test_every_part_says_which_characters_it_is_of(tokenizer: TextTokenizer, unbroken: tuple[list[str], Path]):
    paths, out = unbroken
    texts = {
        fields["id"]: fields["text"]
        for path in sorted(Path(paths[0]).glob("*.jsonl"))
        for fields in map(json.loads, path.read_text(encoding="utf-8").splitlines()[:-1])
    }
    found = [one for file in sorted(out.glob("*-*.safetensors")) for one in read_interleaved(file)]
    assert found
    for one in found:
        assert one.chars is not None and one.chars[0][0] == 0 and one.chars[-1][1] == len(texts[one.id])
        assert all(before[1] == here[0] for before, here in itertools.pairwise(one.chars))
        for (kind, ids), (start, end) in zip(one.parts, one.chars, strict=True):
            if kind == "text":
                assert ids.tolist() == tokenizer.encode([texts[one.id][start:end]])[0].tolist()


def test_documents_are_in_voices_where_the_template_has_one(tokenizer: TextTokenizer, tmp_path: Path):
    paths = corpus(tmp_path)
    voiced = Template("{speech}<|user|>", "{voice}<|user|>{text}<|assistant|>")
    one = job(tokenizer, paths, tmp_path / "out", template=voiced, voices=("ann", "ben"))
    names = [raw.voice for raw in one.documents_of(Path(paths[0]) / "0.jsonl")]
    assert set(names) == {"ann", "ben"}
    assert names == [raw.voice for raw in one.documents_of(Path(paths[0]) / "0.jsonl")]
    with pytest.raises(ValueError, match=r"the template has no \{voice\}"):
        job(tokenizer, paths, tmp_path / "other", voices=("ann",))
