"""Bad data that no other file injects: formats and rates, memory, dead workers, lengths of documents."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from datamodules import audio_batches, recordings
from datamodules.cuts import read_cuts, write_cuts
from datamodules.recordings import BadRecording, load_recording
from speechlm.tokens.clock import Clock
from speechlm.tokens.filling import RowFiller
from speechlm.tokens.rows import RowFile, row_writer
from speechlm.tokens.templates import Written
from tests.audio_corpus import RATE_HZ, cut_of, make_corpus, tone
from tests.row_corpus import VOCAB
from tests.test_audio_data import make_data

CLOCK = Clock()


def heard(path: Path) -> np.ndarray:
    """What is loaded of a file that its manifest describes truly."""
    return load_recording(cut_of(path), CLOCK)


@pytest.mark.parametrize("rate_hz", [8000, 11025, 16000, 22050, 44100, 48000, 96000, 192000])
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_other_rates_and_channels_become_the_clock_s_rate_and_the_first_channel(
    tmp_path: Path, rate_hz: int, channels: int
):
    time = np.arange(rate_hz) / rate_hz
    wave = np.stack([0.3 * np.sin(2 * np.pi * 440 * (1 + c) * time) for c in range(channels)], 1)
    soundfile.write(tmp_path / "a.wav", wave, rate_hz)
    audio = heard(tmp_path / "a.wav")
    assert len(audio) == RATE_HZ
    expected = 0.3 * np.sin(2 * np.pi * 440 * np.arange(RATE_HZ) / RATE_HZ)
    assert np.abs(audio - expected)[200:-200].max() < 2e-3


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"])
def test_every_width_of_samples_is_the_same_sound(tmp_path: Path, subtype: str):
    wave = tone(0.5)
    soundfile.write(tmp_path / "a.wav", wave, RATE_HZ, subtype=subtype)
    limit = {"PCM_U8": 8e-3, "ULAW": 1.2e-2, "ALAW": 1.2e-2}.get(subtype, 1e-4)
    assert np.abs(heard(tmp_path / "a.wav") - wave).max() < limit


@pytest.mark.parametrize("samples", [1, 2, 160, 1279, 1280, 1281])
def test_recordings_of_a_few_samples_are_what_they_are(tmp_path: Path, samples: int):
    soundfile.write(tmp_path / "a.wav", tone(1.0)[:samples], RATE_HZ)
    assert len(heard(tmp_path / "a.wav")) == samples


@pytest.mark.parametrize("kind", ["clipped", "constant", "one sample", "far too loud"])
def test_ugly_but_usable_sound_stays_finite_and_within_bounds(tmp_path: Path, kind: str):
    wave = {
        "clipped": np.sign(tone(0.5)),
        "constant": np.full(8000, 0.25),
        "one sample": np.eye(1, 8000, 100)[0],
        "far too loud": 1e6 * tone(0.5),
    }[kind]
    soundfile.write(tmp_path / "a.wav", wave, RATE_HZ, subtype="FLOAT")
    audio = heard(tmp_path / "a.wav")
    assert np.isfinite(audio).all() and np.abs(audio).max() <= 1


def test_three_hours_are_refused_before_they_are_held(tmp_path: Path):
    path, seconds, rate_hz = tmp_path / "long.wav", 3 * 3600, 48_000
    soundfile.write(path, np.zeros(1, np.int16), rate_hz)
    header, size = bytearray(path.read_bytes()[:44]), seconds * rate_hz * 2
    header[4:8], header[40:44] = (size + 36).to_bytes(4, "little"), size.to_bytes(4, "little")
    path.write_bytes(header)
    os.truncate(path, 44 + size)  # a hole, which takes no room on the disk
    with pytest.raises(BadRecording) as bad:
        heard(path)
    assert bad.value.reason == "too large"


@pytest.mark.parametrize("name", ["a.flac", "a.mp3", "a.ogg", "a.wav"])
@pytest.mark.parametrize("written", ["WAV", "FLAC"])
def test_a_wrong_extension_does_not_matter(tmp_path: Path, name: str, written: str):
    soundfile.write(tmp_path / name, tone(0.5), RATE_HZ, format=written)
    assert len(load_recording(cut_of(tmp_path / name, num_samples=8000), CLOCK)) == 8000


def test_a_machine_without_memory_is_no_bad_recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def starved(*_: Any) -> None:
        raise MemoryError("cannot allocate")

    manifest = make_corpus(tmp_path, 4)
    monkeypatch.setattr(recordings, "_decode", starved)
    with pytest.raises(MemoryError, match="cannot allocate"):
        list(make_data(manifest).train_dataloader())
    with pytest.raises(Exception, match=r"(?s)MemoryError.*DataLoader worker process 0"):
        list(make_data(manifest, num_workers=1).train_dataloader())


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_a_loader_s_worker_that_dies_is_named(tmp_path: Path, how: signal.Signals, monkeypatch: pytest.MonkeyPatch):
    parent, load = os.getpid(), audio_batches.load_recording

    def dies(*args: Any) -> np.ndarray:
        if os.getpid() != parent:
            os.kill(os.getpid(), how)
        return load(*args)

    monkeypatch.setattr(audio_batches, "load_recording", dies)
    with pytest.raises(RuntimeError, match=r"DataLoader worker \(pid"):
        list(make_data(make_corpus(tmp_path, 8), num_workers=1).train_dataloader())


@pytest.mark.parametrize("lengths", [[1], [8192], [8193], [1_000_000], [2, 8191, 8192, 8193, 16_384, 16_385, 3]])
def test_documents_of_every_length_are_packed_without_losing_an_id(tmp_path: Path, lengths: list[int]):
    rng = np.random.default_rng(0)
    documents = [rng.integers(0, 1000, length) for length in lengths]
    with row_writer(tmp_path / "a.rows", 8192, VOCAB.hash, len(VOCAB), {"source": "x"}) as writer:
        filler = RowFiller(writer, VOCAB, 2**17)
        for ids in documents:
            filler.add(Written(ids, 0))
        filled = filler.finish()
    assert filled.ids_in == filled.ids_out == sum(lengths)
    file = RowFile(tmp_path / "a.rows", verify=True)
    out = np.concatenate([row.ids[: row.document_ends[-1]] for row in map(file.row, range(len(file)))])
    assert np.array_equal(np.sort(out), np.sort(np.concatenate(documents)))


def test_a_manifest_written_in_the_middle_of_a_kill_is_the_old_one(tmp_path: Path):
    manifest = make_corpus(tmp_path, 5)
    before = manifest.read_bytes()
    program = (
        "import sys,os,signal\nfrom datamodules.cuts import read_cuts,write_cuts\n"
        "def cuts():\n    yield from read_cuts(sys.argv[1])\n    os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_cuts(cuts(), sys.argv[1])"
    )
    done = subprocess.run([sys.executable, "-c", program, str(manifest)], check=False)
    assert done.returncode == -signal.SIGKILL and manifest.read_bytes() == before
    assert len(list(read_cuts(manifest))) == 5
    write_cuts(list(read_cuts(manifest)), manifest)
