"""Training data: bad recordings are skipped and named, the order is reproducible, and a resumed run hears what comes next."""

import itertools
import logging
import os
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import soundfile
import torch
import torch.multiprocessing as mp
from lhotse import CutSet, MultiCut, Recording

from datamodules.audio import AudioDataModule
from datamodules.audio_batches import AudioDataset
from datamodules.augment import Augmentation
from datamodules.cuts import CutSource, read_cuts, write_cuts
from datamodules.recordings import BadRecording, Skips, load_recording
from speechlm.batch import AudioBatch
from speechlm.tokens.clock import Clock
from tests.audio_corpus import RATE_HZ, cut_of, make_corpus, tone

CLOCK = Clock()


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two manifests, of 24 and of 12 short recordings."""
    folder = tmp_path_factory.mktemp("corpora")
    return make_corpus(folder, 24, "a"), make_corpus(folder, 12, "b")


def make_data(*manifests: Path | CutSource, **settings: Any) -> AudioDataModule:
    sources = [m if isinstance(m, CutSource) else CutSource(str(m)) for m in manifests]
    return AudioDataModule(CLOCK, sources, **{"batch_seconds": 2.5, "num_buckets": 3, "epochs": 1, **settings})


def batches_of(*manifests: Path | CutSource, **settings: Any) -> list[AudioBatch]:
    return list(make_data(*manifests, **settings).train_dataloader())


def ids_of(batches: list[AudioBatch]) -> list[str]:
    return [name for batch in batches for name in batch.cut_ids]


# --- what a batch is


def test_a_batch_has_each_recording_with_zeros_behind_it(corpora: tuple[Path, Path]) -> None:
    by_id = {cut.id: cut for cut in read_cuts(corpora[0])}
    batches = batches_of(corpora[0])
    assert sorted(ids_of(batches)) == sorted(by_id)
    for batch in batches:
        assert batch.audio.dtype == torch.float32 and batch.audio_lens.dtype == torch.int64
        for row, num_samples, name, text in zip(batch.audio, batch.audio_lens, batch.cut_ids, batch.texts, strict=True):
            expected = soundfile.read(by_id[name].recording.sources[0].source, dtype="float32")[0]
            assert np.array_equal(row[:num_samples].numpy(), expected) and not row[num_samples:].any()
            assert text == f"a {int(name[1:])}"
        assert batch.languages == ["en"] * len(batch) and batch.sample_rate_hz == RATE_HZ


def test_batches_hold_the_seconds_asked_for_and_little_padding(tmp_path: Path) -> None:
    manifest = make_corpus(tmp_path, 300, seconds=(0.1, 0.5))
    batches = batches_of(manifest, num_buckets=10)
    assert all(batch.audio.numel() <= 2.5 * RATE_HZ for batch in batches)
    padding = sum(batch.audio.numel() for batch in batches) - sum(int(batch.audio_lens.sum()) for batch in batches)
    assert padding < 0.08 * sum(batch.audio.numel() for batch in batches)
    assert len(batches) <= sum(batch.seconds for batch in batches) / 2.5 / 0.92 + 10  # a rest in each bucket


def test_other_rates_and_channels_are_converted_to_channel_0_at_the_clock(tmp_path: Path) -> None:
    for rate_hz in (8000, 22050, 44100, 48000):
        left, right = tone(0.5, rate_hz, seed=1), tone(0.5, rate_hz, seed=9)
        soundfile.write(tmp_path / f"{rate_hz}.wav", np.stack([left, right, right], axis=1), rate_hz, subtype="FLOAT")
        recording = Recording.from_file(tmp_path / f"{rate_hz}.wav")
        mono = load_recording(cut_of(tmp_path / f"{rate_hz}.wav"), CLOCK)
        multi = load_recording(MultiCut("m", 0.0, recording.duration, [0, 1, 2], recording=recording), CLOCK)
        expected = tone(0.5, RATE_HZ, seed=1)
        assert abs(len(mono) - len(expected)) <= 1 and np.array_equal(mono, multi)
        if rate_hz > RATE_HZ:
            middle = slice(800, 7200)
            error = mono[: len(expected)][middle] - expected[: len(mono)][middle]
            assert np.corrcoef(mono[middle], expected[middle])[0, 1] > 0.99, f"{rate_hz} Hz: {np.abs(error).max()}"


def test_a_cut_in_the_middle_of_a_recording_is_that_stretch(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "long.flac", tone(2.0), RATE_HZ)
    cut = cut_of(tmp_path / "long.flac").truncate(offset=0.5, duration=0.25)
    expected = soundfile.read(tmp_path / "long.flac", dtype="float32")[0][8000:12000]
    assert np.array_equal(load_recording(cut, CLOCK), expected)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_mixed_and_transformed_cuts_are_heard_as_lhotse_renders_them(tmp_path: Path, num_workers: int) -> None:
    first, second = list(read_cuts(make_corpus(tmp_path, 2)))
    joined, faster = first.append(second).with_id("joined"), first.perturb_speed(1.1).with_id("faster")
    write_cuts([joined, faster], tmp_path / "m.jsonl")
    data = make_data(tmp_path / "m.jsonl", num_workers=num_workers, shuffle=False, num_buckets=1, batch_seconds=10.0)
    (batch,) = data.train_dataloader()
    assert batch.cut_ids == ["joined", "faster"] and batch.texts == ["a 0 a 1", "a 0"]
    for row, num_samples, cut in zip(batch.audio, batch.audio_lens, (joined, faster), strict=True):
        np.testing.assert_allclose(row[:num_samples].numpy(), cut.load_audio()[0], atol=1e-6)
    (tmp_path / "audio" / "a001.flac").unlink()
    (batch,) = data.train_dataloader()
    assert batch.cut_ids == ["faster"] and "missing" in data.skipped


def test_the_manifest_alone_leaves_out_what_is_too_long_too_short_or_without_text(tmp_path: Path) -> None:
    manifest = make_corpus(tmp_path, 12)
    cuts = list(read_cuts(manifest))
    cuts[0].supervisions[0].text = "  "
    cuts[1].supervisions = []
    cuts[2].supervisions[0].text = None
    write_cuts(cuts, manifest)
    data = make_data(manifest, min_seconds=0.25, max_seconds=0.5)
    used = ids_of(list(data.train_dataloader()))
    left_out = {cut.id for cut in cuts if not 0.25 <= cut.duration <= 0.5} | {cut.id for cut in cuts[:3]}
    assert sorted(used) == sorted({cut.id for cut in cuts} - left_out)
    assert data.skipped.total() == len(left_out) and set(data.skipped) == {"too long", "too short", "no transcript"}


def test_a_corpus_of_which_nothing_can_be_used_says_so(corpora: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no cut can be used of .*a\.jsonl: \d+ too long; used are [\d.]+ to 0\.19 s"):
        batches_of(corpora[0], max_seconds=0.19)
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(ValueError, match=r"no cut can be used of .*empty\.jsonl: it is empty"):
        batches_of(corpora[0], tmp_path / "empty.jsonl")
    with pytest.raises(ValueError, match=r"no cut can be used of .*empty\.jsonl"):
        make_data(corpora[0], val={"v": str(tmp_path / "empty.jsonl")}).val_dataloader()


def test_short_recordings_are_joined_up_to_the_length_asked_for(corpora: tuple[Path, Path]) -> None:
    batches = batches_of(corpora[0], join_seconds=1.5, batch_seconds=10.0)
    names = [name for joined in ids_of(batches) for name in joined.split("+")]
    assert sorted(names) == sorted(cut.id for cut in read_cuts(corpora[0]))
    assert any("+" in joined for joined in ids_of(batches))
    assert all(batch.audio_lens.max() <= 1.5 * RATE_HZ for batch in batches)


# --- bad recordings


def bad_file(kind: str, path: Path) -> int:
    """A file that is bad in one way; returns the samples that the manifest has for it."""
    audio = tone(0.5)
    if kind == "html":
        path.write_text("<html><body>404 Not Found</body></html>")
    elif kind == "0 bytes":
        path.write_bytes(b"")
    elif kind == "no samples":
        soundfile.write(path, np.zeros(0, np.float32), RATE_HZ, format="WAV")
    elif kind in ("truncated flac", "damaged flac"):
        soundfile.write(path, np.random.default_rng(0).standard_normal(8000) * 0.1, RATE_HZ, format="FLAC")
        data = bytearray(path.read_bytes())
        data[5000:5400] = bytes(400)
        path.write_bytes(data if kind == "damaged flac" else data[: len(data) // 2])
    elif kind.startswith("truncated"):
        name = {"truncated wav": "WAV", "truncated mp3": "MP3", "truncated opus": "OGG"}[kind]
        soundfile.write(path, audio, RATE_HZ, format=name, subtype="OPUS" if name == "OGG" else None)
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    elif kind in ("nan", "inf"):
        audio[100] = float(kind)
        soundfile.write(path, audio, RATE_HZ, format="WAV", subtype="FLOAT")
    elif kind == "all zero":
        soundfile.write(path, np.zeros(8000, np.float32), RATE_HZ, format="WAV")
    elif kind == "longer than the manifest says":
        soundfile.write(path, tone(3.0), RATE_HZ, format="WAV")
    elif kind == "folder":
        path.mkdir()
    else:
        assert kind == "missing"
    return 8000


BAD = {
    "html": "unreadable", "0 bytes": "empty", "no samples": "empty", "truncated flac": "", "damaged flac": "",
    "truncated wav": "wrong duration", "truncated mp3": "truncated", "truncated opus": "",
    "nan": "not finite", "inf": "not finite", "all zero": "silent",
    "longer than the manifest says": "wrong duration", "missing": "missing", "folder": "missing",
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_recording_is_skipped_named_and_changes_no_other(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = make_corpus(tmp_path, 6)
    good = list(read_cuts(manifest))
    alone = batches_of(manifest, batch_seconds=10.0, num_buckets=1, shuffle=False)
    path = tmp_path / "audio" / "bad.wav"
    write_cuts([*good[:3], cut_of(path, num_samples=bad_file(kind, path)), *good[3:]], manifest)
    data = make_data(manifest, batch_seconds=10.0, num_buckets=1, shuffle=False)
    with caplog.at_level(logging.WARNING):
        (batch,) = data.train_dataloader()
    assert torch.equal(batch.audio, alone[0].audio) and batch.cut_ids == alone[0].cut_ids
    assert [name for name, _ in batch.skipped] == ["bad"] and BAD[kind] in batch.skipped[0][1]
    assert data.skipped.total() == 1 and BAD[kind] in "".join(data.skipped)
    assert "skipped bad" in caplog.text and str(path) in caplog.text and "1 bad, 6 good" in caplog.text


def test_a_decompression_bomb_is_not_unfolded(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "bomb.flac", np.zeros((16_000 * 600, 1), np.int16), RATE_HZ)  # 10 minutes in 10 kB
    with pytest.raises(BadRecording, match=r"600\.000 s in the file, 0\.500 s in the manifest"):
        load_recording(cut_of(tmp_path / "bomb.flac", num_samples=8000), CLOCK)


def test_the_run_stops_above_the_rate_but_not_for_one_bad_file_among_the_first(tmp_path: Path) -> None:
    manifest = make_corpus(tmp_path, 30)
    for name in ("a000", "a001", "a002"):
        (tmp_path / "audio" / f"{name}.flac").write_text("<html>")
    with pytest.raises(
        RuntimeError, match=r"3 of \d+ recordings .*'unreadable': 3.*more than the 1\.00% allowed.*max_skip_rate"
    ):
        batches_of(manifest, max_skip_rate=0.01, min_skip_count=3)
    assert len(ids_of(batches_of(manifest, max_skip_rate=0.01, min_skip_count=4))) >= 27
    assert len(ids_of(batches_of(manifest, max_skip_rate=0.2, min_skip_count=3))) >= 27


def test_one_in_ten_thousand_does_not_stop_a_run() -> None:
    skips = Skips(max_rate=0.001, min_count=10)
    for _ in range(50):
        skips.add(9_999, [("x", "unreadable: x")])
    assert skips.reasons == {"unreadable": 50}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_skips_are_counted_wherever_the_audio_is_read(tmp_path: Path, num_workers: int) -> None:
    manifest = make_corpus(tmp_path, 20)
    (tmp_path / "audio" / "a003.flac").write_text("<html>")
    (tmp_path / "audio" / "a007.flac").unlink()
    data = make_data(manifest, num_workers=num_workers)
    assert len(set(ids_of(list(data.train_dataloader())))) == 18
    assert data.skipped == {"unreadable": 1, "missing": 1}


def test_a_batch_of_which_nothing_can_be_read_is_stood_in_for(tmp_path: Path) -> None:
    manifest = make_corpus(tmp_path, 8)
    settings = {"batch_seconds": 0.6, "num_buckets": 1, "shuffle": False, "max_skip_rate": 1.0}
    whole = batches_of(manifest, **settings)
    (tmp_path / "audio" / f"{whole[3].cut_ids[0]}.flac").write_text("<html>")
    batches = batches_of(manifest, **settings)
    assert len(batches) == len(whole)  # ranks train the same number of batches
    assert batches[3].cut_ids == whole[2].cut_ids and batches[3].skipped
    assert [b.cut_ids for i, b in enumerate(batches) if i != 3] == [b.cut_ids for i, b in enumerate(whole) if i != 3]


# --- order


def test_the_order_is_a_function_of_seed_and_pass(corpora: tuple[Path, Path]) -> None:
    first, again, other = (ids_of(batches_of(*corpora, seed=seed, epochs=2)) for seed in (3, 3, 4))
    assert first == again != other
    assert sorted(first[:36]) == sorted(first[36:]) and first[:36] != first[36:]


def test_without_shuffling_the_order_is_the_same_in_every_pass(corpora: tuple[Path, Path]) -> None:
    two = [batch.cut_ids for batch in batches_of(corpora[0], shuffle=False, num_buckets=1, epochs=2)]
    assert two[: len(two) // 2] == two[len(two) // 2 :]


def test_endless_data_is_mixed_by_weight(corpora: tuple[Path, Path]) -> None:
    data = make_data(CutSource(str(corpora[0]), weight=1.0), CutSource(str(corpora[1]), weight=3.0), epochs=None)
    names = list(itertools.islice((c.id for batch in data._train_batches(0) for c in batch), 2000))
    assert 0.70 < np.mean([name[0] == "b" for name in names]) < 0.80
    assert set(names) == {cut.id for manifest in corpora for cut in read_cuts(manifest)}


def test_a_corpus_of_weight_0_is_not_used(corpora: tuple[Path, Path]) -> None:
    assert {name[0] for name in ids_of(batches_of(corpora[0], CutSource(str(corpora[1]), weight=0.0)))} == {"a"}


def of_rank(data: AudioDataModule, rank: int, world_size: int) -> list[CutSet]:
    data.trainer = SimpleNamespace(global_rank=rank, world_size=world_size)
    return list(data._train_batches(0))


def test_ranks_share_the_data_in_batches_of_like_size(tmp_path: Path) -> None:
    manifest = make_corpus(tmp_path, 120)
    ranks = [of_rank(make_data(manifest), rank, 2) for rank in range(2)]
    assert len(ranks[0]) == len(ranks[1])
    names = [{cut.id for batch in rank for cut in batch} for rank in ranks]
    assert not names[0] & names[1] and len(names[0] | names[1]) == 120
    longest = [[max(cut.duration for cut in batch) for batch in rank] for rank in ranks]
    differences = np.abs(np.subtract(*longest))
    assert np.median(differences) < 0.1 * np.mean(longest)


def test_what_is_left_out_is_counted_once_however_many_ranks_read_it(corpora: tuple[Path, Path]) -> None:
    counts = []
    for world_size in (1, 2):
        ranks = [make_data(corpora[0], max_seconds=0.5) for _ in range(world_size)]
        for rank, data in enumerate(ranks):
            of_rank(data, rank, world_size)
        counts.append(sum((data.skipped for data in ranks), Counter()))
    assert counts[0] == counts[1] and counts[0]["too long"] > 0


@pytest.mark.parametrize(("count", "some_again"), [(5, False), (9, True), (12, True)])
def test_every_validation_recording_counts_on_one_rank_alone(tmp_path: Path, count: int, some_again: bool) -> None:
    manifest = make_corpus(tmp_path, count)
    batches: list[AudioBatch] = []
    for rank in range(4):
        data = make_data(manifest, val={"v": str(manifest)}, batch_seconds=1.0)
        data.trainer = SimpleNamespace(global_rank=rank, world_size=4)
        batches += data.val_dataloader()[0]
    repeated = [again for batch in batches for again in batch.repeated]
    counted = [name for name, again in zip(ids_of(batches), repeated, strict=True) if not again]
    assert sorted(counted) == sorted(cut.id for cut in read_cuts(manifest))
    assert all(len(set(batch.repeated)) == 1 for batch in batches)  # so that a batch counts whole or not at all
    assert any(repeated) == some_again


def test_validation_sets_are_whole_named_and_in_the_same_order_each_time(corpora: tuple[Path, Path]) -> None:
    data = make_data(corpora[0], val={"small": str(corpora[1]), "large": CutSource(str(corpora[0]))})
    assert data.val_names == ["small", "large"]
    small, large = data.val_dataloader()
    first, again = ids_of(list(small)), ids_of(list(small))
    assert first == again and sorted(first) == sorted(cut.id for cut in read_cuts(corpora[1]))
    assert len(ids_of(list(large))) == 24


# --- augmentation


def test_augmentation_is_off_by_default() -> None:
    audio = tone(0.5)
    assert np.array_equal(Augmentation()(audio, 1.0, np.random.default_rng(0), CLOCK), audio)


@pytest.mark.parametrize("noise", ["white", "pink", "manifest"])
def test_noise_is_added_at_the_ratio_asked_for(corpora: tuple[Path, Path], noise: str) -> None:
    audio = tone(1.0, seed=3)
    noise = str(corpora[1]) if noise == "manifest" else noise
    augmentation = Augmentation(noise=noise, noise_snr_db=(10.0, 10.0), noise_share=1.0)
    noisy = augmentation(audio, 1.0, np.random.default_rng(1), CLOCK)
    ratio = 10 * np.log10(np.mean(audio**2) / np.mean((noisy - audio) ** 2))
    assert ratio == pytest.approx(10.0, abs=0.1)


def test_speed_and_volume_are_changed_by_the_factors_asked_for() -> None:
    audio, rng = tone(1.0), np.random.default_rng(0)
    for speed in (0.9, 1.1):
        assert len(Augmentation()(audio, speed, rng, CLOCK)) == pytest.approx(16_000 / speed, abs=1)
    quieter = Augmentation(volume_db=(-6.0, -6.0))(audio, 1.0, rng, CLOCK)
    np.testing.assert_allclose(quieter, audio * 10 ** (-6 / 20), rtol=1e-5)


def test_a_recording_is_slowed_down_only_as_far_as_it_fits() -> None:
    augmentation = Augmentation(speed=[0.8, 0.9, 1.1])
    chosen = {augmentation.choose_speed(str(name), 28.0, 30.0) for name in range(50)}
    assert chosen == {1.1}
    assert {augmentation.choose_speed(str(name), 20.0, 30.0) for name in range(50)} == {0.8, 0.9, 1.1}
    assert Augmentation(speed=[0.8]).choose_speed("x", 28.0, 30.0) == 1.0


def test_a_change_of_speed_neither_overfills_batches_nor_pads_them(tmp_path: Path) -> None:
    manifest = make_corpus(tmp_path, 300, seconds=(0.1, 0.5))
    batches = batches_of(manifest, num_buckets=10, augmentation=Augmentation(speed=[0.8, 1.0, 1.25]))
    lens = {name: int(n) for batch in batches for name, n in zip(batch.cut_ids, batch.audio_lens, strict=True)}
    speeds = {round(lens[cut.id] / cut.num_samples, 2) for cut in read_cuts(manifest)}
    assert speeds == {0.8, 1.0, 1.25}
    assert all(batch.audio.numel() <= 2.5 * RATE_HZ + len(batch) for batch in batches)
    assert sum(batch.audio.numel() for batch in batches) < 1.1 * sum(lens.values())


def test_augmentation_is_a_function_of_seed_pass_and_recording(corpora: tuple[Path, Path]) -> None:
    cuts = list(read_cuts(corpora[0]))[:4]

    def rows(seed: int, number: int, order: list[int]) -> dict[str, bytes]:
        dataset = AudioDataset(CLOCK, augmentation=Augmentation(noise_snr_db=(5, 20), volume_db=(-6, 0)), seed=seed)
        for cut in cuts:
            cut.pass_number = number
        batch, _ = dataset[[cuts[i] for i in order], []]
        lens = zip(batch.cut_ids, batch.audio, batch.audio_lens, strict=True)
        return {name: audio[:num_samples].numpy().tobytes() for name, audio, num_samples in lens}

    assert rows(0, 0, [0, 1, 2, 3]) == rows(0, 0, [3, 1, 0, 2])
    assert rows(0, 0, [0]) != rows(0, 1, [0]) != rows(1, 1, [0])


# --- settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"join_seconds": 31.0}, "join_seconds"), ({"epochs": 0}, "epochs"), ({"min_seconds": 40.0}, "min_seconds"),
        ({"batch_seconds": 0.0}, "batch_seconds"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_data(Path("a.jsonl"), **settings)


def test_an_augmentation_that_cannot_be_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"augmentation\.speed"):
        Augmentation(speed=[0.0])
    with pytest.raises(ValueError, match=r"augmentation\.volume_db"):
        Augmentation(volume_db=(3.0, -3.0))


def test_a_missing_manifest_is_named_before_training() -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jsonl"):
        make_data(Path("nowhere.jsonl")).setup()


# --- resume


class Stop(Exception):
    """A run is killed."""


class Recorder(L.LightningModule):
    """Notes what it is trained on: optimizer step, batch index, ids, and the audio itself."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[int, int, tuple[str, ...], float]] = []

    def training_step(self, batch: AudioBatch, batch_idx: int) -> torch.Tensor:
        ids = tuple(batch.cut_ids)
        self.seen.append((self.trainer.global_step, batch_idx, ids, float(batch.audio.double().sum())))
        return self.weight * 1.0

    def validation_step(self, batch: AudioBatch, batch_idx: int) -> None:
        assert len(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


class KillAt(L.Callback):
    """Saves a checkpoint in one hook, once so many batches are trained, and ends the run there."""

    def __init__(self, hook: str, batches: int, path: Path) -> None:
        def kill(trainer: L.Trainer, module: Recorder, *args: Any) -> None:
            if len(module.seen) == batches and not trainer.sanity_checking:
                trainer.save_checkpoint(path)
                raise Stop

        setattr(self, hook, kill)


def train(data: AudioDataModule, callbacks: list[L.Callback], resume: Path | None = None, **settings: Any) -> list[Any]:
    """What was trained on, until the end or `Stop`."""
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False, num_sanity_val_steps=0, callbacks=callbacks, **{"max_epochs": 2, **settings},
    )  # fmt: skip
    module = Recorder()
    try:
        trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True if resume else None)
    except Stop:
        assert not resume
    return module.seen


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "two epochs of Lightning": ({}, {}),
    "two passes in one epoch": ({"epochs": 2}, {"max_epochs": 1}),
    "gradients accumulated": ({}, {"accumulate_grad_batches": 2}),
    "gradients accumulated up to a step": ({}, {"accumulate_grad_batches": 2, "max_steps": 1000}),
    "endless": ({"epochs": None}, {"max_epochs": -1, "max_steps": 21}),
    "epochs of so many batches": ({"epochs": None}, {"max_epochs": 3, "limit_train_batches": 5}),
}
HOOKS = [
    "on_train_batch_end",
    "on_validation_end",
    "on_train_epoch_end",
    "on_train_epoch_start",
    "on_train_batch_start",
]


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_trains_what_an_unbroken_one_would(corpora: tuple[Path, Path], tmp_path: Path, case: str) -> None:
    data_settings, settings = CASES[case]

    def data() -> AudioDataModule:
        augmentation = Augmentation(speed=[0.9, 1.1], volume_db=(-6, 0))
        return make_data(*corpora, val={"b": str(corpora[1])}, augmentation=augmentation, **data_settings)

    unbroken = train(data(), [], **settings)
    half = 5 if "limit_train_batches" in settings else len(unbroken) // 2
    for hook, batches in resume_points(half):
        checkpoint = tmp_path / f"{hook}-{batches}.ckpt"
        before = train(data(), [KillAt(hook, batches, checkpoint)], **settings)
        if checkpoint.exists():  # this hook is called there
            assert before + train(data(), [], checkpoint, **settings) == unbroken, f"{hook} after {batches} batches"
    assert len(list(tmp_path.iterdir())) >= 5


def resume_points(half: int) -> Iterator[tuple[str, int]]:
    """A batch, the middle, and both sides of the end of an epoch."""
    yield from (("on_train_batch_end", n) for n in (1, half - 2, half, half + 1))
    yield from ((hook, half) for hook in HOOKS[1:])
    yield "on_train_batch_start", half - 1


def test_a_run_that_reached_its_steps_goes_on_with_more(corpora: tuple[Path, Path], tmp_path: Path) -> None:
    unbroken = train(make_data(*corpora), [])
    for steps in (4, len(unbroken) // 2, len(unbroken) // 2 + 2):
        checkpoint = tmp_path / f"{steps}.ckpt"
        before = train(make_data(*corpora), [KillAt("on_train_end", steps, checkpoint)], max_steps=steps)
        assert before + train(make_data(*corpora), [], checkpoint) == unbroken


def test_workers_change_neither_order_nor_resume(corpora: tuple[Path, Path], tmp_path: Path) -> None:
    unbroken = train(make_data(*corpora, num_workers=0), [])
    before = train(make_data(*corpora, num_workers=2), [KillAt("on_train_batch_end", 4, tmp_path / "x.ckpt")])
    assert before + train(make_data(*corpora, num_workers=2), [], tmp_path / "x.ckpt") == unbroken


def test_other_data_than_the_checkpoint_s_is_reported(corpora: tuple[Path, Path], tmp_path: Path) -> None:
    train(make_data(*corpora), [KillAt("on_train_batch_end", 2, tmp_path / "x.ckpt")])
    with pytest.warns(UserWarning, match="order of the data is not that of the checkpoint.*seed 0 -> 1"):
        train(make_data(*corpora, seed=1), [], tmp_path / "x.ckpt")


def test_data_asked_for_before_the_position_is_known_is_an_error(corpora: tuple[Path, Path], tmp_path: Path) -> None:
    class Early(Recorder):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            assert self.trainer.estimated_stepping_batches
            return super().configure_optimizers()

    train(make_data(*corpora), [KillAt("on_train_batch_end", 2, tmp_path / "x.ckpt")])
    trainer = L.Trainer(max_epochs=2, max_steps=100, accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(RuntimeError, match="estimated_stepping_batches"):
        trainer.fit(Early(), datamodule=make_data(*corpora), ckpt_path=tmp_path / "x.ckpt", weights_only=True)


def _train_on_rank(rank: int, port: int, manifests: list[Path], folder: Path) -> None:
    os.environ |= {
        "TORCHELASTIC_RUN_ID": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2",
        "RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0",
    }  # fmt: skip
    torch.set_num_threads(1)
    settings = {"devices": 2, "strategy": "ddp", "accumulate_grad_batches": 2}
    unbroken = train(make_data(*manifests), [], **settings)
    checkpoint = folder / "x.ckpt"
    before = train(make_data(*manifests), [KillAt("on_train_batch_end", 4, checkpoint)], **settings)
    after = train(make_data(*manifests), [], checkpoint, **settings)
    assert len(after) > 2 and before + after == unbroken
    (folder / f"{rank}.txt").write_text(" ".join(name for row in unbroken for name in row[2]))


@pytest.mark.slow
def test_two_ranks_each_resume_with_what_they_would_train_next(corpora: tuple[Path, Path], tmp_path: Path) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    mp.spawn(_train_on_rank, (port, list(corpora), tmp_path), nprocs=2)
    names = [(tmp_path / f"{rank}.txt").read_text().split() for rank in range(2)]
    heard = {name.partition("_dup")[0] for rank in names for name in rank}
    assert heard == {cut.id for manifest in corpora for cut in read_cuts(manifest)} and set(names[0]) != set(names[1])
