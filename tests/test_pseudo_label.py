"""Pseudo-labels: every recording accounted for, the same after any kill, and no text in them that the model was not sure of."""

import itertools
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from lhotse.cut import MonoCut

from callbacks.work_progress import WorkProgress
from datamodules import labelling
from datamodules.audio import AudioDataModule
from datamodules.cuts import CutSource, read_cuts, write_cuts
from datamodules.label_folder import LabelFolder, LabelPlan
from datamodules.labelling import Labeller, Listening
from datamodules.labels import Heard, Trust, compression_ratio
from datamodules.quiet_splits import quiet_splits
from datamodules.recordings import load_recording
from datamodules.token_plan import count_manifests
from speechlm.nn.hub_asr import Label
from speechlm.pseudo_label import main
from speechlm.tokens.clock import Clock
from tests.audio_corpus import RATE_HZ, cut_of, make_corpus, tone
from tests.tiny_asr import make_ctc, make_multilingual_whisper


class Killed(BaseException):
    """As a signal would."""


class Echo:
    """Hears how many samples there are, and is as sure as a recording is loud; notes its batches."""

    sample_rate_hz = RATE_HZ

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def padded_seconds(self, seconds: float) -> float:
        return seconds

    def transcribe(self, audio: list[np.ndarray], languages: list[str]) -> list[Label]:
        self.batches.append([len(wave) for wave in audio])
        rows = zip(audio, languages, strict=True)
        return [Label(f"{len(wave)} samples", code, -float(np.abs(wave).max()), 0.1) for wave, code in rows]


SETTINGS: dict[str, Any] = {"shard_size": 5, "batch_seconds": 1.0, "max_seconds": 1.0, "decode_threads": 2}


def labeller(
    out: Path,
    *manifests: Path,
    trust: Trust = Trust(),  # noqa: B008
    rank: int = 0,
    world_size: int = 1,
    **settings: Any,
) -> Labeller:
    listening = Listening(**{**SETTINGS, **settings})
    plan = LabelPlan(count_manifests([str(m) for m in manifests]), listening.shard_size, "echo", "0", {"language": ""})
    watcher = WorkProgress(plan.num_cuts, bar=False)
    folder = LabelFolder.start(out, plan)
    return Labeller(folder, Echo(), listening, trust, "en", watcher, rank, world_size)


def content(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """12 short recordings, one of 2.6 s, one that is no audio and one that is gone."""
    manifest = make_corpus(tmp_path / "corpus", 12)
    cuts = list(read_cuts(manifest))
    long = tmp_path / "corpus" / "audio" / "long.flac"
    audio = tone(2.6)
    audio[12_000:15_000] = audio[25_000:28_000] = 0.0  # two pauses
    soundfile.write(long, audio, RATE_HZ)
    (tmp_path / "corpus" / "audio" / "bad.flac").write_text("<html>")
    absent = [cut_of(tmp_path / "corpus" / "audio" / f"{name}.flac", num_samples=8000) for name in ("bad", "gone")]
    write_cuts([*cuts[:3], cut_of(long), *absent, *cuts[3:]], manifest)
    return manifest


def test_every_recording_is_heard_or_skipped_and_every_stretch_kept_or_left_out(corpus: Path, tmp_path: Path) -> None:
    work = labeller(tmp_path / "out", corpus)
    counts = work.run()
    assert str(counts) == (
        "15 recordings in = 13 heard + 2 skipped (1 missing, 1 unreadable); 15 stretches in = 15 kept (0.00 h) + 0 left out"
    )
    originals = {cut.id: cut for cut in read_cuts(corpus)}
    made = list(read_cuts(tmp_path / "out" / "cuts"))
    assert [c.id for c in made if not c.id.startswith("long")] == [name for name in originals if name[0] == "a"]
    for cut in made:
        (said,) = cut.supervisions
        assert said.text == f"{round(cut.duration * RATE_HZ)} samples" and said.language == "en"
        assert said.custom["labelled_by"] == "echo 0" and said.custom["no_speech"] == 0.1
        heard = load_recording(cut, Clock())
        assert said.custom["confidence"] == pytest.approx(-np.abs(heard).max(), abs=1e-4)
    assert work.folder.summarise(asdict(Trust())) == counts


def test_a_long_recording_is_cut_in_its_pauses_and_nothing_of_it_is_lost(corpus: Path, tmp_path: Path) -> None:
    labeller(tmp_path / "out", corpus).run()
    pieces = [cut for cut in read_cuts(tmp_path / "out" / "cuts") if cut.id.startswith("long")]
    starts = [round(piece.start * RATE_HZ) for piece in pieces]
    assert len(starts) == 3 and starts[0] == 0 and 12_000 < starts[1] < 15_000 and 25_000 < starts[2] < 28_000
    whole, _ = soundfile.read(corpus.parent / "audio" / "long.flac", dtype="float32")
    assert np.array_equal(np.concatenate([load_recording(piece, Clock()) for piece in pieces]), whole)


def test_no_stretch_is_longer_than_asked_for_whatever_the_recording() -> None:
    rng = np.random.default_rng(0)
    for num_samples in (1, 15_999, 16_000, 16_001, 100_000):
        audio = rng.standard_normal(num_samples).astype(np.float32)
        splits = quiet_splits(audio, RATE_HZ, 1.0)
        assert splits[0][0] == 0 and splits[-1][1] == num_samples
        assert all(a[1] == b[0] for a, b in itertools.pairwise(splits))
        assert all(0 < end - first <= RATE_HZ for first, end in splits)


def test_batches_are_of_like_length_and_hold_no_more_than_asked_for(tmp_path: Path) -> None:
    work = labeller(tmp_path / "out", make_corpus(tmp_path / "c", 40), shard_size=40, batch_seconds=2.0)
    work.run()
    batches = work.recogniser.batches  # type: ignore[attr-defined]
    assert all(len(batch) * max(batch) <= 2 * RATE_HZ for batch in batches)
    assert sum(map(len, batches)) == 40 and len(batches) <= 12
    assert sum(map(sum, batches)) > 0.9 * sum(len(batch) * max(batch) for batch in batches)


def kill_points() -> Iterator[str]:
    yield from (f"batch {n}" for n in (1, 3, 6))
    yield from (f"{where} {n}" for where in ("write_heard", "write_cuts", "write_chosen") for n in (1, 2))


@pytest.mark.parametrize("point", kill_points())
def test_a_killed_run_goes_on_to_what_an_unbroken_one_makes(
    corpus: Path, tmp_path: Path, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    labeller(tmp_path / "unbroken", corpus).run()
    where, number = point.split()
    calls = itertools.count(1)

    def dying(real: Any) -> Any:
        def call(*args: Any, **named: Any) -> Any:
            if next(calls) == int(number):
                raise Killed
            return real(*args, **named)

        return call

    work = labeller(tmp_path / "out", corpus)
    with monkeypatch.context() as patch:
        if where == "batch":
            patch.setattr(work.recogniser, "transcribe", dying(work.recogniser.transcribe))
        elif where == "write_cuts":
            patch.setattr(labelling, "write_cuts", dying(labelling.write_cuts))
        else:
            patch.setattr(LabelFolder, where, dying(getattr(LabelFolder, where)))
        with pytest.raises(Killed):
            work.run()
    again = labeller(tmp_path / "out", corpus)
    again.run()
    assert content(tmp_path / "out") == content(tmp_path / "unbroken")
    heard = sum(map(len, again.recogniser.batches))  # type: ignore[attr-defined]
    assert heard == 15 if point == "batch 1" else heard <= 15
    if point in ("batch 6", "write_cuts 2", "write_chosen 1"):
        assert heard < 15  # what was done is not done again


def test_ranks_together_make_what_one_makes(corpus: Path, tmp_path: Path) -> None:
    labeller(tmp_path / "one", corpus).run()
    ranks = [labeller(tmp_path / "two", corpus, rank=rank, world_size=2) for rank in range(2)]
    ranks[1].run()
    assert ranks[1].folder.summarise(asdict(Trust())) is None
    ranks[0].run()
    assert content(tmp_path / "one") == content(tmp_path / "two")
    assert ranks[0].folder.summarise(asdict(Trust())).cuts_in == 15  # type: ignore[union-attr]


@pytest.mark.parametrize("damage", ["a letter", "of another folder"])
def test_damaged_labels_are_made_again(corpus: Path, tmp_path: Path, damage: str) -> None:
    labeller(tmp_path / "out", corpus).run()
    made = content(tmp_path / "out")
    path = tmp_path / "out" / "heard" / "000001.json"
    if damage == "a letter":
        path.write_bytes(path.read_bytes().replace(b"samples", b"simples", 1))
    else:
        labeller(tmp_path / "other", corpus.parent / "audio" / ".." / "a.jsonl", shard_size=4).run()
        path.write_bytes((tmp_path / "other" / "heard" / "000001.json").read_bytes())
    again = labeller(tmp_path / "out", corpus)
    again.run()
    assert content(tmp_path / "out") == made and again.recogniser.batches  # type: ignore[attr-defined]


def test_other_thresholds_choose_again_without_hearing_again(corpus: Path, tmp_path: Path) -> None:
    labeller(tmp_path / "out", corpus).run()
    sure = [c.id for c in read_cuts(tmp_path / "out" / "cuts") if c.supervisions[0].custom["confidence"] >= -0.23]
    work = labeller(tmp_path / "out", corpus, trust=Trust(min_confidence=-0.23))
    counts = work.run()
    assert not work.recogniser.batches  # type: ignore[attr-defined]
    assert [cut.id for cut in read_cuts(tmp_path / "out" / "cuts")] == sure and 0 < len(sure) < 15
    assert counts.left_out == {"low confidence": 15 - len(sure)}


def test_a_label_is_left_out_for_what_is_wrong_with_it() -> None:
    def reason(text: str, confidence: float = -0.2, no_speech: float | None = 0.0) -> str:
        return Trust().reason_against(Heard(0, 0.0, 1.0, text, "en", confidence, no_speech))

    assert reason("a good sentence") == "" and reason("", -0.1) == "nothing heard"
    assert reason("you", no_speech=0.9) == "no speech" and reason("you", no_speech=None) == ""
    assert reason("mumbled", confidence=-1.01) == "low confidence"
    assert reason("yes " * 60) == "repeats itself" and compression_ratio("a good sentence") < 1.0


def test_a_folder_begun_with_something_else_is_refused(corpus: Path, tmp_path: Path) -> None:
    labeller(tmp_path / "out", corpus)
    plan = LabelPlan(count_manifests([str(corpus)]), 5, "echo", "1", {"language": "zh"})
    changed = r"begun with something else.*\n  model_hash: 0 -> 1\n  settings.language:  -> zh"
    with pytest.raises(ValueError, match=changed):
        LabelFolder.start(tmp_path / "out", plan)


# --- the command


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_multilingual_whisper(tmp_path_factory.mktemp("whisper")))


def recordings(folder: Path) -> Path:
    """A folder of recordings in two formats, below each other, and something else."""
    for index, name in enumerate(["a.wav", "b/c.flac", "b/d.flac"]):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / name, tone(0.4 + 0.1 * index, seed=index), RATE_HZ)
    (folder / "b" / "notes.txt").write_text("hello")
    return folder


ALL_KEPT = ["--trust.min_confidence", "-99", "--trust.max_no_speech", "1", "--trust.max_compression", "99"]


@pytest.mark.parametrize("kind", ["whisper", "ctc"])
def test_a_folder_of_recordings_becomes_a_manifest_that_is_trained_on(
    tmp_path: Path, whisper: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = whisper if kind == "whisper" else str(make_ctc(tmp_path / "ctc"))
    out = tmp_path / "out"
    command = [
        "--whisper",
        model,
        "--audio",
        str(recordings(tmp_path / "audio")),
        "--out",
        str(out),
        "--language",
        "zh",
    ]
    main([*command, *ALL_KEPT])
    printed = capsys.readouterr().out
    assert "3 recordings in = 3 heard + 0 skipped; 3 stretches in = 3 kept" in printed and "x real time" in printed
    cuts: list[MonoCut] = list(read_cuts(out / "cuts"))
    assert sorted(cut.id for cut in cuts) == ["a", "b/c", "b/d"]
    assert all(cut.supervisions[0].language == "zh" and cut.supervisions[0].text for cut in cuts)
    assert all(cut.supervisions[0].custom["labelled_by"].startswith(model) for cut in cuts)
    data = AudioDataModule(Clock(), [CutSource(str(out / "cuts"))], num_buckets=1, epochs=1)
    (batch,) = data.train_dataloader()
    assert sorted(batch.texts) == sorted(cut.supervisions[0].text for cut in cuts)
    made = content(out)
    main([*command, *ALL_KEPT])
    assert content(out) == made
    assert json.loads(made["summary.json"])["counts"]["kept"] == 3


@pytest.mark.slow
def test_processes_killed_by_a_signal_lose_nothing_and_repeat_nothing(tmp_path: Path) -> None:
    model, corpus = str(make_ctc(tmp_path / "ctc")), make_corpus(tmp_path / "corpus", 60)
    shards = ["--listening.shard_size", "6", "--listening.batch_seconds", "1", *ALL_KEPT]
    main(["--whisper", model, "--audio", str(corpus), "--out", str(tmp_path / "unbroken"), *shards])
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "speechlm.pseudo_label",
        "--whisper",
        model,
        "--audio",
        str(corpus),
        "--out",
        str(out),
    ]
    for done in (1, 4, 7):
        process = subprocess.Popen([*command, *shards], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and len(list(out.glob("heard/*.json"))) < done:
            time.sleep(0.001)
        process.kill()
        process.wait()
    assert 7 <= len(list(out.glob("heard/*.json"))) < 10
    assert subprocess.run([*command, *shards], check=False, capture_output=True).returncode == 0
    leftover = {name for name in content(out) if name.endswith(".part")}
    assert {name: data for name, data in content(out).items() if name not in leftover} == content(tmp_path / "unbroken")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--language", "fr"], "does not know the language 'fr'; it knows en, zh"),
        (["--audio", "nowhere"], "nowhere"),
        (["--audio", "empty"], "there is no audio"),
        (["--whisper", "empty"], "empty"),
        (["--rank", "3", "--world_size", "2"], "rank must be"),
    ],
)
def test_what_can_not_be_is_refused_by_name(
    tmp_path: Path, whisper: str, options: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    recordings(tmp_path / "audio")
    with pytest.raises(SystemExit) as stopped:
        main(["--whisper", whisper, "--audio", "audio", "--out", "out", *options])
    assert message in str(stopped.value)


def test_a_transcript_that_was_there_is_replaced(corpus: Path, tmp_path: Path) -> None:
    labeller(tmp_path / "out", corpus).run()
    assert not any(cut.supervisions[0].text.startswith("a ") for cut in read_cuts(tmp_path / "out" / "cuts"))
