"""Recordings with their tokens: aligned to the sample, shortened the same way again, bad ones counted."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from lhotse import CutSet, MonoCut, NumpyFilesWriter
from lightning import LightningModule, Trainer
from safetensors.torch import load_file, save_file
from scipy.signal import correlate
from torch import Tensor

from datamodules.audio import AudioDataModule
from datamodules.cuts import CutSource, read_cuts, write_cuts
from datamodules.pitch import pitch_of
from datamodules.recordings import BadRecording
from datamodules.resynthesis import ResynthesisDataModule
from datamodules.resynthesis_batches import aligned, load_tokens
from speechlm.batch import ResynthesisBatch
from speechlm.tokens.clock import Clock
from speechlm.tokens.vocab import OtherVocab, Vocab
from tests.audio_corpus import cut_of, make_corpus
from tests.token_corpus import GOLDEN, tokenized

CLOCK = Clock(sample_rate_hz=22_050, token_rate_hz=12.5, hop_samples=256)
TOKENIZER_CLOCK = Clock(sample_rate_hz=16_000, token_rate_hz=12.5)


def steps(num_samples: int, clock: Clock, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A waveform whose loudness says which token each sample belongs to, and the tokens: sample / 100 is the token's id."""
    tokens = np.random.default_rng(seed).integers(10, 90, clock.num_tokens(num_samples))
    level = np.repeat(tokens / 100.0, clock.samples_per_token)[:num_samples]
    return level.astype(np.float32), tokens


def corpus(folder: Path, lengths: list[int], name: str = "a", rate_hz: int = 16_000, tokens: bool = True) -> Path:
    """Recordings of so many samples whose sound tells their tokens, as `speechlm.tokenize` would write them."""
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    clock, cuts = Clock(sample_rate_hz=rate_hz), []
    with NumpyFilesWriter(folder / "tokens") as writer:
        for i, length in enumerate(lengths):
            path = folder / "audio" / f"{name}{i:03d}.flac"
            audio, ids = steps(length, clock, seed=i)
            soundfile.write(path, audio, rate_hz)
            cut = cut_of(path, text=f"{name} {i}")
            cut.supervisions[0].speaker = f"speaker{i % 2}"
            if tokens:
                cut.speech_tokens = writer.store_array(
                    key=cut.id, value=ids.astype(np.int32), frame_shift=0.08, temporal_dim=0, start=0
                )
            cuts.append(cut)
    write_cuts(cuts, folder / f"{name}.jsonl")
    return folder / f"{name}.jsonl"


def data(path: Path, **settings: object) -> ResynthesisDataModule:
    defaults = {"batch_seconds": 6.0, "epochs": 1, "min_seconds": 0.1, "num_buckets": 2, "max_skip_rate": 1.0}
    return ResynthesisDataModule(CLOCK, [CutSource(str(path))], **{**defaults, **settings})  # type: ignore[arg-type]


def batches(module: AudioDataModule) -> list[ResynthesisBatch]:
    return list(module.train_dataloader())  # type: ignore[arg-type]


# -- whose tokens ------------------------------------------------------------------------------------------------------


class Decoder(LightningModule):
    """A stage that speaks so many codes."""

    def __init__(self, codes: int) -> None:
        super().__init__()
        self.vocab = Vocab(num_text=0, num_speech=codes, controls=())


def test_tokens_of_another_codebook_or_of_two_tokenizers_are_refused_before_training(tmp_path: Path):
    manifest = make_corpus(tmp_path / "corpus", 6, seconds=(0.5, 1.0))
    one = tokenized(tmp_path / "one", manifest)
    weights = load_file(GOLDEN / "model.safetensors")
    other = Path(shutil.copytree(GOLDEN, tmp_path / "other_tokenizer"))
    save_file(
        {**weights, "model.encoder.conv1.weight": 2 * weights["model.encoder.conv1.weight"]},
        other / "model.safetensors",
    )
    retrained = {"class_path": "speechlm.tokenizers.Glm4VoiceTokens", "init_args": {"folder": str(other)}}
    two = tokenized(tmp_path / "two", manifest, tokenizer=retrained)

    def setup(codes: int, *sources: Path) -> None:
        module = ResynthesisDataModule(CLOCK, [CutSource(str(path)) for path in sources], epochs=1)
        module.trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
        module.trainer.strategy.connect(Decoder(codes))
        module.setup("fit")

    setup(64, one)
    with pytest.raises(OtherVocab, match="codes 64, wanted 128"):
        setup(128, one)
    with pytest.raises(OtherVocab, match=r"two/out are not those that are wanted: tokenizer \w+, wanted \w+"):
        setup(64, one, two)


# -- alignment ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate_hz", [16_000, 24_000, 22_050])
def test_every_sample_belongs_to_its_token(tmp_path: Path, rate_hz: int):
    lengths = [rate_hz, rate_hz + 1, int(1.37 * rate_hz), 13 * int(0.08 * rate_hz)]
    seen = 0
    for batch in batches(data(corpus(tmp_path, lengths, rate_hz=rate_hz))):
        assert batch.sample_rate_hz == 22_050
        for i in range(len(batch)):
            count, samples = int(batch.speech_token_lens[i]), int(batch.audio_lens[i])
            assert CLOCK.num_tokens(samples) == count
            said = np.repeat(batch.speech_tokens[i, :count].numpy() / 100.0, CLOCK.samples_per_token)[:samples]
            wrong = np.flatnonzero(np.abs(batch.audio[i, :samples].numpy() - said) > 0.02)
            # Resampling smears a step over a few samples; away from borders every sample has the level of its token.
            edge = np.minimum(wrong % CLOCK.samples_per_token, -wrong % CLOCK.samples_per_token)
            assert not len(wrong) or edge[(wrong > 40) & (wrong < samples - 40)].max(initial=0) <= 40
            assert (batch.speech_tokens[i, count:] == -1).all() and not batch.audio[i, samples:].any()
            seen += 1
    assert seen == len(lengths)


def test_a_part_of_a_recording_has_its_own_tokens(tmp_path: Path):
    cut = next(iter(read_cuts(corpus(tmp_path, [32_000]))))
    whole = load_tokens(cut, CLOCK)
    part = load_tokens(cut.truncate(offset=0.8, duration=0.8), CLOCK)
    assert np.array_equal(part, whole[10:])
    with pytest.raises(BadRecording, match="behind the first one"):
        load_tokens(cut.truncate(offset=0.5), CLOCK)


def test_the_last_token_may_be_filled_in_part_and_one_may_be_missing():
    audio = np.zeros(3 * 1764 + 5, np.float32)
    assert [len(x) for x in aligned(audio, np.arange(4), CLOCK)] == [len(audio), 4]
    assert [len(x) for x in aligned(audio, np.arange(9), CLOCK)] == [len(audio), 4]
    assert [len(x) for x in aligned(audio, np.arange(3), CLOCK)] == [3 * 1764, 3]
    with pytest.raises(BadRecording, match="2 tokens for 5297 samples, which fill 4"):
        aligned(audio, np.arange(2), CLOCK)


def test_tokens_survive_the_manifest_and_speakers_and_texts_come_along(tmp_path: Path):
    batch = next(iter(data(corpus(tmp_path, [16_000, 16_000]), shuffle=False).train_dataloader()))
    assert sorted(zip(batch.cut_ids, batch.speakers, batch.texts, strict=True)) == [
        ("a000", "speaker0", "a 0"),
        ("a001", "speaker1", "a 1"),
    ]
    assert batch.f0 is None and batch.speech_tokens.dtype == torch.int64


# -- pieces and cut-off recordings -------------------------------------------------------------------------------------


def test_pieces_are_exact_random_and_the_same_again(tmp_path: Path):
    path = corpus(tmp_path, [48_000, 40_000, 8_000, 16_000], tokens=False)
    settings = {"segment_samples": 24_576, "epochs": 2, "batch_seconds": 2.4}
    first, again = batches(data(path, **settings)), batches(data(path, **settings))
    assert all(torch.equal(a.audio, b.audio) for a, b in zip(first, again, strict=True))
    assert {tuple(batch.audio.shape) for batch in first} <= {(1, 24_576), (2, 24_576)}
    assert sum(len(batch) for batch in first) == 8
    assert all(batch.speech_tokens.shape == (len(batch), 0) for batch in first)
    pieces = [(name, audio) for batch in first for name, audio in zip(batch.cut_ids, batch.audio, strict=True)]
    long = [audio for name, audio in pieces if name == "a000"]
    assert not torch.equal(*long)  # another place in the second pass
    short = next(audio for name, audio in pieces if name == "a002")
    assert short[:11_000].any() and not short[11_025:].any()


def test_a_piece_is_what_the_whole_recording_has_there(tmp_path: Path):
    noise = np.convolve(np.random.default_rng(0).standard_normal(48_000), np.ones(8) / 8, "same").astype(np.float32)
    (tmp_path / "audio").mkdir()
    soundfile.write(tmp_path / "audio" / "a.flac", 0.2 * noise, 16_000)
    write_cuts([cut_of(tmp_path / "audio" / "a.flac")], tmp_path / "a.jsonl")
    piece = batches(data(tmp_path / "a.jsonl", segment_samples=256 * 40))[0].audio[0].numpy()
    whole = batches(data(tmp_path / "a.jsonl", tokens=False))[0].audio[0].numpy()
    # The piece begins between two samples of the whole: found where they correlate best.
    found = correlate(whole, piece, "valid", "fft")
    power = np.sqrt(correlate(whole**2, np.ones_like(piece), "valid", "fft") * (piece**2).sum())
    assert (found / power).max() > 0.99


def test_cut_off_recordings_end_behind_whole_blocks(tmp_path: Path):
    path = corpus(tmp_path, [16_000 * 4] * 12)
    full = CLOCK.num_tokens(CLOCK.num_samples(4.0))
    lens = [
        int(n)
        for batch in batches(data(path, truncate_share=0.7, epochs=3, batch_seconds=9.0))
        for n in batch.speech_token_lens
    ]
    assert len(lens) == 36
    cut_off = [n for n in lens if n < full]
    assert set(cut_off) <= {10, 20, 30, 40} and len(set(cut_off)) >= 3
    assert 0.3 < len(cut_off) / len(lens) < 0.9


def test_validation_is_always_of_whole_recordings(tmp_path: Path):
    path = corpus(tmp_path, [48_000, 40_000])
    module = data(path, val={"heldout": str(path)}, segment_samples=2560)
    (loader,) = module.val_dataloader()
    assert sorted(int(n) for batch in loader for n in batch.audio_lens) == [55_125, 66_150]
    assert module.val_names == ["heldout"]


# -- resuming ----------------------------------------------------------------------------------------------------------


class Listener(LightningModule):
    """Writes down what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[Tensor] = []
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch: ResynthesisBatch, batch_idx: int) -> Tensor:
        self.heard.append(batch.audio)
        return self.weight.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def heard(folder: Path, module: ResynthesisDataModule, steps: int, ckpt_path: str | None = None) -> list[Tensor]:
    trainer = Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, use_distributed_sampler=False, default_root_dir=folder,
    )  # fmt: skip
    listener = Listener()
    trainer.fit(listener, datamodule=module, ckpt_path=ckpt_path)
    trainer.save_checkpoint(folder / f"{steps}.ckpt")
    return listener.heard


def test_a_resumed_run_hears_the_pieces_that_an_unbroken_one_hears(tmp_path: Path):
    path = corpus(tmp_path, [48_000 + 500 * i for i in range(9)], tokens=False)
    settings = {"segment_samples": 2560, "epochs": None, "batch_seconds": 0.3}
    unbroken = heard(tmp_path / "x", data(path, **settings), 9)
    before = heard(tmp_path / "y", data(path, **settings), 4)
    after = heard(tmp_path / "y", data(path, **settings), 9, str(tmp_path / "y" / "4.ckpt"))
    assert all(torch.equal(a, b) for a, b in zip(unbroken, before + after, strict=True))


# -- pitch -------------------------------------------------------------------------------------------------------------


def vowel(hz: float, seconds: float) -> np.ndarray:
    time = np.arange(int(seconds * 22_050)) / 22_050
    return sum(0.3 / k * np.sin(2 * np.pi * hz * k * time) for k in range(1, 9)).astype(np.float32)  # type: ignore[union-attr]


@pytest.mark.parametrize("method", ["harvest", "dio"])
def test_pitch_is_that_of_each_frames_middle(method: str):
    audio = np.concatenate([vowel(150.0, 0.5), np.zeros(11_025, np.float32), vowel(250.0, 0.5)])
    pitch = pitch_of(audio, CLOCK, method)  # type: ignore[arg-type]
    assert pitch.shape == (CLOCK.num_frames(len(audio)),)
    middle = (np.arange(len(pitch)) + 0.5) * 256 / 22_050
    assert np.abs(pitch[(middle > 0.1) & (middle < 0.4)] - 150).max() < 3
    assert np.abs(pitch[(middle > 1.1) & (middle < 1.4)] - 250).max() < 5
    assert not pitch[(middle > 0.6) & (middle < 0.9)].any()


def test_pitch_that_rises_is_dated_to_the_frames_middle():
    time = np.arange(int(0.6 * 22_050)) / 22_050
    cycles = 120.0 * time + 0.5 * 600.0 * time**2  # 120 Hz, and 600 Hz a second more
    audio = sum(0.3 / k * np.sin(2 * np.pi * k * cycles) for k in range(1, 9))
    pitch = pitch_of(audio.astype(np.float32), CLOCK)  # type: ignore[union-attr]
    middle = (np.arange(len(pitch)) + 0.5) * 256 / 22_050
    inside = (middle > 0.15) & (middle < 0.45)
    late_sec = np.mean(120.0 + 600.0 * middle - pitch, where=inside) / 600.0
    assert abs(late_sec) < 0.0015  # an eighth of a frame


def test_pitch_of_silence_and_of_nearly_nothing_is_none():
    assert not pitch_of(np.zeros(4096, np.float32), CLOCK).any()
    assert pitch_of(np.zeros(1, np.float32), CLOCK).shape == (1,)


def test_pitch_comes_with_the_batch(tmp_path: Path):
    batch = batches(data(corpus(tmp_path, [32_000], tokens=False), segment_samples=2560, pitch="dio"))[0]
    assert batch.f0 is not None and batch.f0.shape == (1, 10) and batch.f0.dtype == torch.float32


def test_without_pyworld_the_run_is_refused_before_it_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "pyworld", None)
    with pytest.raises(ValueError, match=r"speechlm\[vocoder\]"):
        data(corpus(tmp_path, [16_000]), pitch="harvest").setup()


# -- bad input ---------------------------------------------------------------------------------------------------------


def spoilt(tmp_path: Path, **change: object) -> MonoCut:
    cut = next(iter(read_cuts(corpus(tmp_path, [32_000]))))
    for name, value in change.items():
        setattr(cut.speech_tokens, name, value)
    return cut


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"frame_shift": 0.04}, "other token rate"),
        ({"start": -2.0}, "misaligned tokens"),
        ({"start": 0.04}, "misaligned tokens"),
        ({"start": 2.0}, "misaligned tokens"),
    ],
)
def test_tokens_that_can_not_be_these_are_refused(tmp_path: Path, change: dict[str, float], reason: str):
    cut = spoilt(tmp_path, **change)
    with pytest.raises(BadRecording) as refused:
        aligned(np.zeros(44_100, np.float32), load_tokens(cut, CLOCK), CLOCK)
    assert refused.value.reason == reason


def test_bad_recordings_and_tokens_are_skipped_and_counted(tmp_path: Path):
    path = corpus(tmp_path, [16_000 + 160 * i for i in range(6)])
    cuts = list(read_cuts(path))
    Path(cuts[0].recording.sources[0].source).write_bytes(b"<html>")
    Path(cuts[1].speech_tokens.array.storage_path, cuts[1].speech_tokens.array.storage_key).write_bytes(b"nothing")
    np.save(Path(cuts[2].speech_tokens.array.storage_path, cuts[2].speech_tokens.array.storage_key), -np.ones(13, int))
    del cuts[3].custom["speech_tokens"]
    write_cuts(CutSet(cuts), tmp_path / "b.jsonl")
    module = data(tmp_path / "b.jsonl", min_skip_count=100)
    names = [name for batch in batches(module) for name in batch.cut_ids]
    assert sorted(names) == ["a004", "a005"]
    assert module.skipped == {"unreadable": 1, "unreadable tokens": 2, "no speech tokens": 1}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"segment_samples": 1000}, "whole number of mel frames of 256"),
        ({"truncate_share": 1.5}, "truncate_share lies in"),
        ({"segment_samples": 2560, "truncate_share": 0.5}, "choose one"),
    ],
)
def test_settings_that_make_no_sense_are_refused(tmp_path: Path, settings: dict[str, float], message: str):
    with pytest.raises(ValueError, match=message):
        data(corpus(tmp_path, [16_000]), **settings)
