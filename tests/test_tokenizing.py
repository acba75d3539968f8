"""Every cut is accounted for, no cut's tokens depend on another's, and memory does not grow with their number."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from lhotse import AudioSource
from lhotse.cut import MixedCut

from datamodules.background import in_background
from datamodules.cuts import read_cuts, write_cuts
from datamodules.recordings import load_recording
from datamodules.sealed import read_sealed
from datamodules.token_cuts import read_token_cuts, tokens_of
from datamodules.token_folder import start_folder
from datamodules.token_plan import ShardCuts, count_manifests
from datamodules.tokenizing import BulkTokenizer, Making, by_length, header_of
from speechlm.tokenizers import Glm4VoiceTokens
from speechlm.tokens.clock import Clock
from tests.audio_corpus import cut_of, make_corpus
from tests.test_audio_data import BAD, bad_file
from tests.token_corpus import GOLDEN, content, expected_tokens, tokenized

ROOT = Path(__file__).parents[1]


def tokens_by_id(out: Path) -> dict[str, np.ndarray]:
    return {cut.id: tokens_of(cut) for cut in read_token_cuts(out)}


def test_bad_recordings_are_counted_named_and_change_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "corpus").mkdir()
    good = list(read_cuts(make_corpus(tmp_path / "corpus", 6)))
    bad = []
    for number, kind in enumerate(BAD):
        path = tmp_path / "corpus" / f"bad{number}.flac"
        bad.append(cut_of(path, num_samples=bad_file(kind, path)))
    write_cuts([*good[:2], *bad, *good[2:]], tmp_path / "corpus" / "m.jsonl")
    making = {"shard_size": 7, "batch_seconds": 2.0}
    out = tokenized(tmp_path, tmp_path / "corpus" / "m.jsonl", making=making)
    there = tokens_by_id(out)
    assert list(there) == [cut.id for cut in good]
    assert all(np.array_equal(there[cut.id], expected_tokens(load_recording(cut, Clock()))) for cut in good)
    skipped = [json.loads(line) for line in (out / "skipped.jsonl").read_text().splitlines()]
    assert [row["id"] for row in skipped] == [cut.id for cut in bad]
    for row, reason in zip(skipped, BAD.values(), strict=True):
        assert row["reason"] == reason if reason else row["reason"]
        assert f"{row['id']}.flac" in row["what"]
    summary = read_sealed(out / "summary.json")
    assert summary["cuts_in"] == len(good) + len(bad) == summary["cuts_out"] + sum(summary["skipped"].values())
    assert f"{len(good) + len(bad)} cuts in = {len(good)} out + {len(bad)} skipped (" in capsys.readouterr().out
    again = tokenized(tmp_path / "again", tmp_path / "corpus" / "m.jsonl", making=making)
    assert content(again) == content(out)


def test_what_is_said_of_a_bad_recording_is_the_same_in_every_run(tmp_path: Path):
    """A decoder that reads from memory names the object by its address, which every run has another of."""
    cuts = list(read_cuts(make_corpus(tmp_path / "corpus", 2)))
    cuts[1].recording.sources = [AudioSource("memory", [0], b"<html>")]
    write_cuts(cuts, tmp_path / "m.jsonl")
    out = tokenized(tmp_path, tmp_path / "m.jsonl", making={})
    (skipped,) = map(json.loads, (out / "skipped.jsonl").read_text().splitlines())
    assert skipped["id"] == cuts[1].id and "BytesIO object>" in skipped["what"]


def test_cuts_that_can_not_carry_tokens_safely_are_skipped_by_name(tmp_path: Path):
    first, second, third = read_cuts(make_corpus(tmp_path, 3))
    mixed = first.append(second).with_id("mixed")
    assert isinstance(mixed, MixedCut)
    cuts = [first, mixed, second.with_id("../../up"), second.with_id("/etc/passwd"), third, third.with_id(first.id)]
    write_cuts(cuts, tmp_path / "m.jsonl")
    out = tokenized(tmp_path, tmp_path / "m.jsonl", making={"shard_size": 10})
    assert list(tokens_by_id(out)) == [first.id, third.id]
    assert read_sealed(out / "summary.json")["skipped"] == {"duplicate id": 1, "mixed cut": 1, "unsafe id": 2}


def test_too_many_bad_recordings_stop_the_work_and_what_is_done_is_kept(tmp_path: Path):
    manifest = make_corpus(tmp_path / "corpus", 12)
    for cut in list(read_cuts(manifest))[4:8]:
        Path(cut.recording.sources[0].source).unlink()
    making = {"shard_size": 4, "batch_seconds": 2.0, "min_skip_count": 3}
    with pytest.raises(SystemExit) as stopped:
        tokenized(tmp_path, manifest, making=making)
    assert "4 of 8 cuts could not be used ({'missing': 4})" in str(stopped.value.code)
    assert len(tokens_by_id(tokenized(tmp_path, manifest, making={**making, "max_skip_rate": 0.5}))) == 8


def test_a_shard_of_which_nothing_can_be_used_is_there_and_empty(tmp_path: Path):
    manifest = make_corpus(tmp_path / "corpus", 9)
    for cut in list(read_cuts(manifest))[3:6]:
        Path(cut.recording.sources[0].source).unlink()
    out = tokenized(tmp_path, manifest, making={"shard_size": 3})
    assert len(tokens_by_id(out)) == 6
    assert read_sealed(out / "commits" / "000001.json")["cuts_out"] == 0


def test_tokens_do_not_depend_on_the_batch_nor_on_the_order(tmp_path: Path):
    manifest = make_corpus(tmp_path / "corpus", 15, seconds=(0.1, 3.1))
    one = tokens_by_id(tokenized(tmp_path / "one", manifest, making={"batch_seconds": 0.1}))
    many = tokens_by_id(tokenized(tmp_path / "many", manifest, making={"batch_seconds": 100.0}))
    write_cuts(reversed(list(read_cuts(manifest))), tmp_path / "corpus" / "reversed.jsonl")
    back = tokens_by_id(
        tokenized(tmp_path / "back", tmp_path / "corpus" / "reversed.jsonl", making={"batch_seconds": 7.0})
    )
    for cut in read_cuts(manifest):
        alone = expected_tokens(load_recording(cut, Clock()))
        assert all(np.array_equal(tokens[cut.id], alone) for tokens in (one, many, back)), cut.id


def test_tokens_of_tokens_come_from_the_same_audio(tmp_path: Path):
    manifest = make_corpus(tmp_path / "corpus", 5)
    first = tokenized(tmp_path / "first", manifest)
    again = tokenized(tmp_path / "again", first)
    assert [(a.id, *tokens_of(a)) for a in read_token_cuts(again)] == [
        (b.id, *tokens_of(b)) for b in read_token_cuts(first)
    ]


def test_a_shar_folder_with_audio_is_tokenized_where_it_lies(tmp_path: Path):
    manifest = make_corpus(tmp_path / "corpus", 7)
    cuts = read_cuts(manifest)
    (tmp_path / "shar").mkdir()
    cuts.to_shar(tmp_path / "shar", fields={"recording": "flac"}, shard_size=4)
    out = tokenized(tmp_path, tmp_path / "shar")
    expected = tokens_by_id(tokenized(tmp_path / "plain", manifest))
    there = tokens_by_id(out)
    assert there.keys() == expected.keys()
    for cut in read_token_cuts(out):
        assert np.array_equal(there[cut.id], expected[cut.id])
        assert len(load_recording(cut, Clock())) == cut.num_samples  # found in the tar of the old folder


@pytest.mark.parametrize("batch_seconds", [1.0, 5.0, 1000.0])
def test_groups_hold_every_usable_cut_once_within_the_limit_the_longest_first(tmp_path: Path, batch_seconds: float):
    shard = ShardCuts(0, list(read_cuts(make_corpus(tmp_path, 40, seconds=(0.1, 2.0)))), {3: ("why", "what")})
    groups = list(by_length(shard, batch_seconds))
    assert sorted(p for group in groups for p in group) == [p for p in range(40) if p != 3]
    seconds = [[shard.cuts[p].duration for p in group] for group in groups]
    assert all(len(s) == 1 or len(s) * max(s) <= batch_seconds for s in seconds)
    assert [s for group in seconds for s in group] == sorted([s for group in seconds for s in group], reverse=True)


class Liar(Glm4VoiceTokens):
    """A tokenizer that breaks its promise in one way."""

    def __init__(self, lie: str) -> None:
        super().__init__(str(GOLDEN))
        self.lie = lie

    def tokenize(self, audio: torch.Tensor, audio_lens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        tokens, lens = super().tokenize(audio, audio_lens)
        return (tokens[:, 1:], lens - 1) if self.lie == "one too few" else (tokens + 60, lens)


@pytest.mark.parametrize("lie", ["one too few", "not a code"])
def test_a_tokenizer_that_breaks_its_promise_is_stopped(tmp_path: Path, lie: str):
    manifest = make_corpus(tmp_path / "corpus", 3)
    liar, making = Liar(lie), Making(batch_seconds=2.0)
    folder = start_folder(tmp_path / "out", header_of(count_manifests([str(manifest)]), liar, making))
    with pytest.raises(RuntimeError, match=r"the tokenizer gave .* expected \d+ in \[0, 64\)"):
        BulkTokenizer(folder, liar, making, torch.device("cpu"), Silent()).run()
    assert folder.missing() == [0]


class Silent:
    """Who is told, and says nothing."""

    def kept(self, cuts: int) -> None: ...

    def made(self, cuts: int, seconds: float, padded_seconds: float) -> None: ...


def test_a_manifest_that_shrinks_or_grows_after_planning_is_refused(tmp_path: Path):
    manifest = make_corpus(tmp_path / "corpus", 6)
    tokenizer, making = Glm4VoiceTokens(str(GOLDEN)), Making(shard_size=4, batch_seconds=2.0)
    folder = start_folder(tmp_path / "out", header_of(count_manifests([str(manifest)]), tokenizer, making))
    lines = manifest.read_text().splitlines(keepends=True)
    for changed, message in (([*lines, lines[0]], "more than the 6 cuts"), (lines[:5], "has 1 cuts instead of 2")):
        manifest.write_text("".join(changed))
        with pytest.raises(ValueError, match=message):
            BulkTokenizer(folder, tokenizer, making, torch.device("cpu"), Silent()).run()


def test_memory_does_not_grow_with_the_number_of_cuts():
    command = [sys.executable, "benchmarks/tokenize_memory.py", "--cuts", "1200"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    measured = json.loads(done.stdout.splitlines()[-1])
    assert measured["growth_mib"] < 10  # the audio of all of them is 22 MiB; 0 to 5 are seen, whatever their number


# -- the side thread -------------------------------------------------------------------------------------------------------


def test_a_side_thread_gives_the_same_items_and_errors():
    def items() -> Iterator[int]:
        yield from range(5)
        raise KeyError("six")

    running, taken = in_background(items(), depth=2), []
    with pytest.raises(KeyError, match="six"):
        taken.extend(iter(lambda: next(running), None))
    assert taken == list(range(5))


def test_a_side_thread_works_no_further_ahead_than_it_may_and_ends_when_nobody_listens():
    made = []

    def items() -> Iterator[int]:
        for number in range(1000):
            made.append(number)
            yield number

    running = in_background(items(), depth=3)
    assert next(running) == 0
    running.close()
    assert len(made) <= 1 + 3 + 1
