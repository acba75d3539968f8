"""From corpora to rows: every document in a row or counted by reason, the same bytes whoever makes them."""

import itertools
import json
import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from callbacks.pack_progress import PackProgress
from datamodules.interleaved import Interleaved, Making, write_interleaved
from datamodules.token_cuts import read_token_cuts, tokens_of
from datamodules.token_folder import TokenFolder
from speechlm import pack
from speechlm.text_tokenizer import TextTokenizer
from speechlm.tokens.rows import RowFolder
from speechlm.tokens.templates import TEMPLATES
from speechlm.tokens.vocab import Vocab
from tests.text_corpus import CORPUS, make_tokenizer
from tests.token_corpus import content, corpus, tokenized

ROOT = Path(__file__).parents[1]
ROW_LEN = 64


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text tokenizer, a folder of tokens, text in four files, and interleaved documents."""
    kit = tmp_path_factory.mktemp("kit")
    tokenizer = TextTokenizer(make_tokenizer(kit / "tokenizer"))
    tokens = tokenized(kit / "tokens", corpus(kit / "audio"))
    rng = random.Random(0)
    words = " ".join(CORPUS).split()
    (kit / "text").mkdir()
    for number in range(4):
        texts = [" ".join(rng.choices(words, k=rng.randint(1, 60))) for _ in range(30)]
        lines = [json.dumps({"id": f"{number}-{i}", "text": text}) for i, text in enumerate(texts)]
        (kit / "text" / f"{number}.jsonl").write_text("\n".join(lines))
    making = Making(tokenizer.fingerprint, TokenFolder.find(tokens).header.tokenizer_hash, 12.5)
    documents = [
        Interleaved(
            f"d{i}", [("text", tokenizer.encode([words[i]])[0]), ("speech", np.arange(i + 1)), ("text", np.array([9]))]
        )
        for i in range(20)
    ]
    write_interleaved(kit / "interleaved" / "0.safetensors", documents, making)
    return kit


def config(kit: Path, folder: Path, **changes: Any) -> Path:
    """A config that packs all four kinds into `folder`/out."""
    tokens = str(kit / "tokens" / "out")
    values = {
        "out": str(folder / "out"),
        "text_tokenizer": str(kit / "tokenizer"),
        "sources": {
            "text": {"kind": "text", "paths": [str(kit / "text")], "language": "en"},
            "speech": {"kind": "speech", "paths": [tokens]},
            "asr": {"kind": "asr", "paths": [tokens]},
            "tts": {"kind": "tts", "paths": [tokens]},
            "interleaved": {"kind": "interleaved", "paths": [str(kit / "interleaved")]},
        },
        "packing": {"row_len": ROW_LEN, "window_tokens": 512, "unit_mb": 0.001},
    }
    path = folder / "pack.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({**values, **changes}))
    return path


def packed(kit: Path, folder: Path, *arguments: str, **changes: Any) -> Path:
    """The folder that the command makes."""
    pack.main(["--config", str(config(kit, folder, **changes)), *arguments])
    return folder / "out"


@pytest.fixture(scope="module")
def unbroken(kit: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All four kinds, packed in one go."""
    return packed(kit, tmp_path_factory.mktemp("unbroken"))


def refusal(capsys: pytest.CaptureFixture[str], path: Path, *arguments: str) -> str:
    """What a command that must be refused says; its exit code must be 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        pack.main(["--config", str(path), *arguments])
    assert stopped.value.code == 2
    return capsys.readouterr().err


def documents(folder: Path) -> list[tuple[tuple[int, ...], tuple[bool, ...]]]:
    """(ids, predicted) of every document in rows."""
    rows = RowFolder(folder, verify=True)
    found = []
    for index in range(len(rows)):
        row = rows.row(index)
        predicted = np.zeros(rows.row_len, bool)
        for begin, end in row.loss_spans:
            predicted[begin:end] = True
        begin = 0
        for end in row.document_ends.tolist():
            found.append((tuple(row.ids[begin:end].tolist()), tuple(predicted[begin:end].tolist())))
            begin = end
    return found


def pieces(ids: list[int], target: int) -> list[tuple[tuple[int, ...], tuple[bool, ...]]]:
    """A sequence as it lies in rows."""
    cut = []
    for start in range(0, len(ids), ROW_LEN):
        part = ids[start : start + ROW_LEN]
        cut.append((tuple(part), tuple(i > 0 and start + i >= target for i in range(len(part)))))
    return cut


def test_every_text_is_in_the_rows_with_its_end_and_all_of_it_is_predicted(kit: Path, unbroken: Path):
    tokenizer = TextTokenizer(kit / "tokenizer")
    texts = [
        json.loads(line)["text"] for file in sorted((kit / "text").iterdir()) for line in file.read_text().splitlines()
    ]
    expected = [piece for ids in tokenizer.encode(texts) for piece in pieces([*ids.tolist(), tokenizer.end], 0)]
    assert Counter(documents(unbroken / "text")) == Counter(expected)
    assert max(len(ids) for ids in tokenizer.encode(texts)) > ROW_LEN


@pytest.mark.parametrize("kind", ["speech", "asr", "tts"])
def test_every_cut_is_in_the_rows_as_its_kind_says(kit: Path, unbroken: Path, kind: str):
    vocab, tokenizer = Vocab.load(unbroken / "vocab.json"), TextTokenizer(kit / "tokenizer")
    begin, end, user, assistant = (
        vocab.control(f"<|{name}|>") for name in ("begin_of_audio", "end_of_audio", "user", "assistant")
    )
    expected = []
    for cut in read_token_cuts(kit / "tokens" / "out"):
        speech = [begin, *(tokens_of(cut) + vocab.speech_offset).tolist(), end]
        text = tokenizer.encode([cut.supervisions[0].text])[0].tolist()
        ask = [tokenizer.encode([words])[0].tolist() for words in ("Transcribe the speech.", "Read the text aloud: ")]
        prompt = {"speech": [], "asr": [user, *ask[0], *speech, assistant], "tts": [user, *ask[1], *text, assistant]}[
            kind
        ]
        target = (text if kind == "asr" else speech) + [tokenizer.end]
        expected += pieces(prompt + target, len(prompt))
    assert Counter(documents(unbroken / kind)) == Counter(expected) and len(expected) == 23


def test_interleaved_documents_keep_their_turns(kit: Path, unbroken: Path):
    vocab = Vocab.load(unbroken / "vocab.json")
    found = documents(unbroken / "interleaved")
    for ids, predicted in found:
        kinds = ["speech" if i >= vocab.speech_offset else "text" if i < vocab.num_text else "control" for i in ids]
        assert kinds[0] == "text" and kinds[-1] == "text" and "speech" in kinds and kinds.count("control") == 2
        assert predicted == (False, *[True] * (len(ids) - 1))
    speech = sorted(sum(i >= vocab.speech_offset for i in ids) for ids, _ in found)
    assert speech == list(range(1, 21))


def test_interleaved_text_of_another_tokenizer_is_read_and_encoded_anew(kit: Path, unbroken: Path, tmp_path: Path):
    make_tokenizer(tmp_path / "other", ["aa bb", "cc dd ee"], vocab_size=280)
    other = TextTokenizer(tmp_path / "other")
    source = {"kind": "interleaved", "paths": [str(kit / "interleaved")], "text_tokenizer": str(kit / "tokenizer")}
    path = config(kit, tmp_path, text_tokenizer=str(tmp_path / "other"), sources={"interleaved": source}, num_speech=64)
    pack.main(["--config", str(path)])
    vocabs = [Vocab.load(folder / "vocab.json") for folder in (unbroken, tmp_path / "out")]
    first, again = (
        sorted(said(ids, vocab, tokenizer) for ids, _ in documents(folder / "interleaved"))
        for folder, vocab, tokenizer in zip(
            (unbroken, tmp_path / "out"), vocabs, (TextTokenizer(kit / "tokenizer"), other), strict=True
        )
    )
    assert first == again and len(again) == 20
    assert documents(unbroken / "interleaved") != documents(tmp_path / "out" / "interleaved")


def test_ids_that_no_text_has_are_left_out_by_name(kit: Path, tmp_path: Path):
    tokenizer = TextTokenizer(kit / "tokenizer")
    apart = np.concatenate(tokenizer.encode(["t", "h", "e"]))  # of a word that has an id of its own
    assert len(tokenizer.encode(["the"])[0]) < 3
    parts = [("text", tokenizer.encode(["the"])[0]), ("speech", np.arange(3))]
    making = Making(tokenizer.fingerprint, "", 12.5)
    documents_ = [Interleaved(f"d{i}", parts if i else [("text", apart), *parts[1:]]) for i in range(40)]
    write_interleaved(tmp_path / "shards" / "0.safetensors", documents_, making)
    make_tokenizer(tmp_path / "other", ["aa bb"], vocab_size=280)
    source = {"kind": "interleaved", "paths": [str(tmp_path / "shards")], "text_tokenizer": str(kit / "tokenizer")}
    path = config(kit, tmp_path, text_tokenizer=str(tmp_path / "other"), sources={"parts": source}, num_speech=16)
    pack.main(["--config", str(path)])
    assert RowFolder(tmp_path / "out" / "parts").index["counts"]["skipped"] == {"unreadable text": 1}


def test_a_reader_of_what_has_no_ids_of_text_is_refused(kit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source = {"kind": "text", "paths": [str(kit / "text")], "text_tokenizer": str(kit / "tokenizer")}
    said_ = refusal(capsys, config(kit, tmp_path, sources={"text": source}, num_speech=64))
    assert "text_tokenizer is for interleaved documents, this source is of kind text" in said_


def said(ids: tuple[int, ...], vocab: Vocab, tokenizer: TextTokenizer) -> tuple[str, ...]:
    """Text, names and codes of a document."""
    kinds = ["text" if i < vocab.num_text else "code" if i >= vocab.speech_offset else "control" for i in ids]
    parts: list[str] = []
    for kind, group in itertools.groupby(zip(kinds, ids, strict=True), key=lambda pair: pair[0]):
        found = np.array([i for _, i in group])
        if kind == "text":
            parts += tokenizer.decode([found])
        else:
            parts.append(str((found - (vocab.speech_offset if kind == "code" else vocab.num_text)).tolist()))
    return tuple(parts)


def test_ids_and_documents_are_conserved_and_counted(kit: Path, unbroken: Path):
    for name in ("text", "speech", "asr", "tts", "interleaved"):
        folder = RowFolder(unbroken / name)
        counts = folder.index["counts"]
        found = documents(unbroken / name)
        assert counts["documents_in"] == counts["documents"] + sum(counts["skipped"].values())
        assert counts["ids_in"] == counts["ids_out"] == sum(len(ids) for ids, _ in found)
        assert counts["ids_out"] == counts["text_ids"] + counts["speech_ids"] + counts["control_ids"]
        assert counts["loss_ids"] == sum(sum(predicted) for _, predicted in found)
        assert counts["padding"] == len(folder) * ROW_LEN - counts["ids_out"]
        assert (folder.index["source"], folder.index["kind"]) == (name, name)
    assert RowFolder(unbroken / "text").index["language"] == "en"
    rates = {name: RowFolder(unbroken / name).index["token_rate_hz"] for name in ("text", "asr", "interleaved")}
    assert rates == {"text": None, "asr": 12.5, "interleaved": 12.5}


def test_the_vocabulary_is_made_of_what_the_text_and_the_speech_were_made_with(kit: Path, unbroken: Path):
    vocab, tokenizer = Vocab.load(unbroken / "vocab.json"), TextTokenizer(kit / "tokenizer")
    header = TokenFolder.find(kit / "tokens" / "out").header
    assert vocab == Vocab(
        tokenizer.size, 64, text_tokenizer=tokenizer.fingerprint, speech_tokenizer=header.tokenizer_hash
    )
    assert RowFolder(unbroken / "tts").vocab_hash == vocab.hash


def test_any_number_of_processes_makes_the_same_bytes(kit: Path, unbroken: Path, tmp_path: Path, capsys):
    for rank in (2, 0, 1):
        packed(kit, tmp_path, "--rank", str(rank), "--world_size", "3")
        said = capsys.readouterr().out
        assert ("still to be made" in said) == (rank != 1)
    mine, theirs = content(tmp_path / "out"), content(unbroken)
    assert mine == theirs
    assert sum(name.endswith(".rows") for name in mine) > 6


def run_once(path: str) -> None:
    """The command, in a process that may be killed."""
    os.setpgid(0, 0)
    pack.main(["--config", path])


def test_killed_again_and_again_it_ends_with_the_bytes_of_an_unbroken_run(kit: Path, unbroken: Path, tmp_path: Path):
    path = str(config(kit, tmp_path))
    context = multiprocessing.get_context("fork")
    rng = random.Random(1)
    kills = 0
    for _ in range(6):
        process = context.Process(target=run_once, args=(path,))
        process.start()
        time.sleep(rng.uniform(0.01, 0.25))
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.join()
    pack.main(["--config", path])
    leftover = {name for name in content(tmp_path / "out") if not name.endswith(".part")}
    assert kills >= 2 and {
        name: data for name, data in content(tmp_path / "out").items() if name in leftover
    } == content(unbroken)


def test_what_is_there_is_kept_and_what_is_damaged_is_made_again(kit: Path, unbroken: Path, tmp_path: Path):
    out = packed(kit, tmp_path)
    victim, other = out / "text" / "00001.rows", out / "text" / "00000.rows"
    victim.write_bytes(victim.read_bytes()[:-5])
    before = other.stat().st_mtime_ns
    packed(kit, tmp_path)
    assert content(out) == content(unbroken) and other.stat().st_mtime_ns == before


def test_a_file_of_another_making_is_made_again(kit: Path, unbroken: Path, tmp_path: Path):
    other = packed(kit, tmp_path / "other", packing={"row_len": ROW_LEN, "window_tokens": 4096, "unit_mb": 0.001})
    out = packed(kit, tmp_path)
    (out / "text" / "00001.rows").write_bytes((other / "text" / "00001.rows").read_bytes())
    packed(kit, tmp_path)
    assert content(out) == content(unbroken)


def test_documents_that_can_not_be_used_are_counted_by_reason(kit: Path, tmp_path: Path, capsys):
    lines = ['{"text": "fine"}', '{"text": ""}', '{"text": " \\n"}', "{", '{"id": 1}', '{"text": "<|endoftext|> x"}']
    lines += [json.dumps({"text": "\0 \ud800 <|begin_of_audio|> שלום 👩‍👩‍👧"})]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    parts = [
        [["speech", [64]]],
        [["text", ""]],
        [["speech", [0, 63]], ["text", "ok"]],
        [["text", [10**6]]],
        [["speech", [-1]]],
    ]
    (tmp_path / "b.jsonl").write_text("\n".join(json.dumps({"parts": part}) for part in parts))
    sources = {
        "text": {"kind": "text", "paths": [str(tmp_path / "a.jsonl")]},
        "parts": {"kind": "interleaved", "paths": [str(tmp_path / "b.jsonl")]},
    }
    out = packed(kit, tmp_path, sources=sources, num_speech=64)
    said = capsys.readouterr().out
    assert "text: 7 documents in = 3 out (0 cut) + 4 skipped (2 bad line, 2 no text)" in said
    assert "parts: 5 documents in = 1 out (0 cut) + 4 skipped (3 id out of range, 1 no parts)" in said
    tokenizer = TextTokenizer(kit / "tokenizer")
    specials = set(tokenizer.specials.values()) | set(range(tokenizer.size, tokenizer.size + 7 + 64))
    assert all(not specials & set(ids[:-1]) for ids, _ in documents(out / "text"))
    examples = RowFolder(out / "parts").locate(0)[0].header["skipped_examples"]
    assert [reason for _, reason, _ in examples].count("id out of range") == 3


def test_too_many_that_can_not_be_used_stop_it(kit: Path, tmp_path: Path):
    (tmp_path / "a.jsonl").write_text("{\n" * 5)
    sources = {"text": {"kind": "text", "paths": [str(tmp_path / "a.jsonl")]}}
    path = config(kit, tmp_path, sources=sources, num_speech=64)
    with pytest.raises(
        SystemExit, match=r"5 of 5 documents of text could not be used .* raise `packing\.max_skip_rate`"
    ):
        pack.main(["--config", str(path), "--packing.min_skip_count", "5"])
    assert not list(tmp_path.rglob("*.rows"))


def test_pairs_longer_than_a_row_are_left_out_and_other_kinds_are_cut(kit: Path, tmp_path: Path):
    out = packed(kit, tmp_path, packing={"row_len": 32, "window_tokens": 64, "unit_mb": 1, "min_skip_count": 1000})
    assert RowFolder(out / "speech").index["counts"]["documents_cut"] > 0
    counts = RowFolder(out / "tts").index["counts"]
    assert counts["documents_cut"] == 0 and counts["skipped"]["pair longer than a row"] > 0
    assert counts["documents_in"] == 23


def test_the_template_of_a_source_is_used(kit: Path, tmp_path: Path):
    sources = {
        "asr": {
            "kind": "asr",
            "paths": [str(kit / "tokens" / "out")],
            "template": {"prompt": "{speech}<|end_of_audio|>", "target": "{text}<|user|>"},
        }
    }
    out = packed(kit, tmp_path, sources=sources)
    vocab = Vocab.load(out / "vocab.json")
    for ids, predicted in documents(out / "asr"):
        switch = ids.index(vocab.control("<|end_of_audio|>"))
        assert all(i >= vocab.speech_offset for i in ids[:switch]) and ids[-1] == vocab.control("<|user|>")
        assert predicted == (*[False] * (switch + 1), *[True] * (len(ids) - switch - 1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--packing.row_len", "128"], "settings.row_len: 64 -> 128"),
        (["--sources.text.language", "fr"], "argument sources.text: "),
        (["--num_speech", "65"], "was made with vocabulary"),
    ],
)
def test_a_folder_begun_with_something_else_is_refused(
    kit: Path, tmp_path: Path, capsys, arguments: list[str], message: str
):
    packed(kit, tmp_path)
    before = content(tmp_path / "out")
    assert message in refusal(capsys, tmp_path / "pack.yaml", *arguments)
    assert content(tmp_path / "out") == before


def test_tokens_of_another_tokenizer_are_refused(kit: Path, tmp_path: Path, capsys):
    other = Vocab(TextTokenizer(kit / "tokenizer").size, 64, speech_tokenizer="another")
    other.save(tmp_path / "vocab.json")
    path = config(kit, tmp_path, vocab=str(tmp_path / "vocab.json"))
    assert "are not those that are wanted: vocabulary's tokenizer" in refusal(capsys, path)
    Vocab(500, 64, text_tokenizer="another").save(tmp_path / "vocab.json")
    assert "is of the text tokenizer another" in refusal(capsys, path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"sources": {"a": {"kind": "text", "paths": ["nowhere"]}}},
            "argument sources: there is no file or folder nowhere",
        ),
        ({"text_tokenizer": "nowhere"}, "argument text_tokenizer"),
        ({"num_text": 3}, "num_text 3 is less than the"),
        ({"packing": {"row_len": 1}}, "row_len >= 2"),
        ({"row_length": 3}, "row_length"),
    ],
)
def test_a_wrong_argument_is_named_before_anything_is_written(
    kit: Path, tmp_path: Path, capsys, changes: dict[str, Any], message: str
):
    assert message in refusal(capsys, config(kit, tmp_path, **changes))
    assert not (tmp_path / "out").exists()


def test_a_name_that_leaves_the_folder_is_refused(kit: Path, tmp_path: Path, capsys):
    sources = {"../up": {"kind": "text", "paths": [str(kit / "text")]}}
    assert "can not be the name of a folder" in refusal(capsys, config(kit, tmp_path, sources=sources, num_speech=64))


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "pack").rglob("*.yaml")), ids=lambda path: path.stem)
def test_a_config_parses(path: Path):
    config = pack.build_parser().parse_args(["--config", str(path)])
    sources = pack.build_parser().instantiate(config).sources
    assert sources and all(source.kind in {*TEMPLATES, "chat"} for source in sources.values()) and config.out


def test_the_tiny_config_packs(kit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.chdir(ROOT)
    tokens = json.dumps([str(kit / "tokens" / "out")])
    paths = [f"--sources.{name}.paths={tokens}" for name in ("speech", "asr", "tts")]
    pack.main(["--config", "configs/pack/tiny/embedded.yaml", "--out", str(tmp_path / "out"), *paths])
    assert capsys.readouterr().out.count("23 documents in = 23 out") == 3
    assert all(len(RowFolder(tmp_path / "out" / name)) for name in ("speech", "asr", "tts"))


def test_progress_says_how_fast_and_how_long_still(monkeypatch: pytest.MonkeyPatch, capsys):
    now = [100.0]
    monkeypatch.setattr("callbacks.pack_progress.time.monotonic", lambda: now[0])
    progress = PackProgress(10_000, "rank 1 of 2")
    assert progress.eta() == "?"
    progress.kept(4_000)
    for _ in range(20):
        now[0] += 1.0
        progress.made(100, 50_000)
    progress.read(1_000)
    assert str(progress) == "rank 1 of 2  50%  2000 documents, 100/s  1.0 M ids, 0.05 M/s  eta 0:01:40"
    assert len(capsys.readouterr().out.splitlines()) == 2
