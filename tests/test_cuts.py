"""Manifests are read without ever running code, leaving their folder or losing a cut in silence."""

import base64
import contextlib
import gzip
import json
import pickle
import shutil
import subprocess
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from lhotse import CutSet
from lhotse.cut import Cut
from lhotse.serialization import deserialize_item

from datamodules import cut_lines
from datamodules import cuts as cuts_module
from datamodules.cuts import CutSource, read_cuts, write_cuts
from datamodules.recordings import BadRecording, load_recording
from speechlm.tokens.clock import Clock
from tests.audio_corpus import RATE_HZ, cut_of, make_corpus, tone


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def good_cut() -> dict[str, Any]:
    """A cut as a manifest has it, its file beside the manifest."""
    return {
        "id": "good", "start": 0.0, "duration": 0.5, "channel": 0, "type": "MonoCut",
        "supervisions": [{"id": "s", "recording_id": "good", "start": 0.0, "duration": 0.5, "text": "hello"}],
        "recording": recording({"type": "file", "channels": [0], "source": "good.flac"}),
    }  # fmt: skip


def recording(source: dict[str, Any]) -> dict[str, Any]:
    return {"id": "good", "sources": [source], "sampling_rate": 16000, "num_samples": 8000, "duration": 0.5}


def storage(kind: str, path: Any = "x", key: Any = "y") -> dict[str, Any]:
    return {"storage_type": kind, "storage_path": path, "storage_key": key, "shape": [1, 1]}


def hostile_cuts(canary: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Cuts that would run code, reach the network or leave the folder, each in one way."""
    touch = f"touch {canary}"
    command = recording({"type": "command", "channels": [0], "source": touch})
    pickled = base64.b64encode(pickle.dumps(Touch(canary))).decode()
    features = {
        "type": "fbank", "num_frames": 1, "num_features": 1, "frame_shift": 0.01, "sampling_rate": 16000,
        "start": 0.0, "duration": 0.5,
    }  # fmt: skip
    for name, source in {
        "command": {"type": "command", "source": touch},
        "url": {"type": "url", "source": "http://169.254.169.254/latest/meta-data"},
        "file address": {"type": "file", "source": "file:///etc/passwd"},
        "pipe": {"type": "file", "source": f"pipe:{touch}"},
        "unknown type": {"type": "torrent", "source": "x"},
        "no type": {"source": "good.flac"},
        "parent folder": {"type": "file", "source": "../good.flac"},
        "hidden parent folder": {"type": "file", "source": "a/../../good.flac"},
        "no path": {"type": "file", "source": ["good.flac"]},
        "null byte": {"type": "file", "source": "good.flac\0"},
        "video": {"type": "file", "source": "good.flac", "video": {"fps": 1, "num_frames": 1, "height": 1, "width": 1}},
        "tar outside": {"type": "tar", "source": "../a.tar", "offset": 0, "size": 1},
        "tar with a pipe": {"type": "tar", "source": f"pipe:{touch}", "offset": 0, "size": 1},
        "tar without end": {"type": "tar", "source": "a.tar", "offset": 0, "size": 2**50},
        "tar before its start": {"type": "tar", "source": "a.tar", "offset": -1, "size": 1},
    }.items():
        yield f"source: {name}", {**good_cut(), "recording": recording({"channels": [0], **source})}
    for name, kept in {
        "pickle": storage("memory_raw", None, pickled),
        "pickled image": {**storage("pillow_memory", None, pickled), "width": 1, "height": 1},
        "kaldi pipe": storage("kaldiio", "x", f"{touch} |"),
        "url": storage("lilcom_url", "http://169.254.169.254", "x"),
        "hdf5": storage("numpy_hdf5", "x.h5"),
        "pipe as path": storage("numpy_files", f"pipe:{touch}"),
        "pipe as key": storage("lilcom_files", "x", f"pipe:{touch}"),
        "folder outside": storage("numpy_files", "../.."),
    }.items():
        yield f"array: {name}", {**good_cut(), "custom": {"codes": kept}}
        temporal = {"array": kept, "temporal_dim": 0, "frame_shift": 0.08, "start": 0}
        yield f"temporal array: {name}", {**good_cut(), "custom": {"codes": temporal}}
        yield f"features: {name}", {**good_cut(), "features": {**features, **kept}}
    yield "custom recording", {**good_cut(), "custom": {"target": command}}
    nested = {"id": "s", "recording_id": "good", "start": 0.0, "duration": 0.5, "custom": {"target": command}}
    yield "recording of a supervision", {**good_cut(), "supervisions": [nested]}
    reverb = {"name": "ReverbWithImpulseResponse", "kwargs": {"rir": command}}
    yield "impulse response", {**good_cut(), "recording": {**good_cut()["recording"], "transforms": [reverb]}}
    track = {"cut": {**good_cut(), "recording": command}, "type": "MonoCut", "offset": 0.0}
    yield "track", {"id": "mix", "type": "MixedCut", "tracks": [track]}
    good_track = {"cut": good_cut(), "type": "MonoCut", "offset": 0.0}
    yield "reverb of a mix", {"id": "mix", "type": "MixedCut", "tracks": [good_track], "transforms": [reverb]}
    yield "reference track", {"id": "mix", "type": "MixedCut", "tracks": [good_track], "snr_reference": track}


NAMES = [name for name, _ in hostile_cuts(Path("canary"))]


def write_lines(path: Path, lines: list[Any]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.mark.parametrize("name", NAMES)
def test_a_manifest_never_runs_code_nor_leaves_its_folder(tmp_path: Path, name: str) -> None:
    canary = tmp_path / "canary"
    soundfile.write(tmp_path / "good.flac", tone(0.5), RATE_HZ)
    hostile = dict(hostile_cuts(canary))[name]
    manifest = write_lines(tmp_path / "m.jsonl", [good_cut(), hostile])
    refusal = r"m\.jsonl:2: .*(refused|not the path|command or an address|leaves|is more than|read only|has a path)"
    with pytest.raises(ValueError, match=refusal):
        loaded(read_cuts(manifest))
    assert not canary.exists()


def test_the_canary_would_sing_if_lhotse_read_the_manifest(tmp_path: Path) -> None:
    hostile = dict(hostile_cuts(tmp_path / "canary"))["source: command"]
    with contextlib.suppress(Exception):  # the output of `touch` is no audio
        deserialize_item(hostile).load_audio()
    assert (tmp_path / "canary").exists()


def test_a_file_name_is_never_handed_to_a_shell(tmp_path: Path) -> None:
    path = tmp_path / "a;touch canary;.sph"  # Lhotse gives names that end so to sph2pipe, unquoted
    soundfile.write(path, tone(0.5), RATE_HZ, format="NIST")
    write_cuts([cut_of(path, num_samples=8000)], tmp_path / "m.jsonl")
    (cut,) = read_cuts(tmp_path / "m.jsonl")
    assert len(load_recording(cut, Clock())) == 8000
    assert len(load_recording(cut.pad(duration=1.0), Clock())) == 16000
    assert not list(tmp_path.glob("canary*")) and not Path("canary").exists()


@pytest.mark.parametrize(
    "line",
    [
        "[]", "7", "null", "{}", '"x"', "{", "\xff", "<html>", "[" * 100_000,
        json.dumps({**good_cut(), "type": "Recording"}), json.dumps({**good_cut(), "duration": float("nan")}),
        json.dumps({**good_cut(), "duration": 1.0}).replace("1.0", "1e999"), json.dumps({**good_cut(), "duration": -1.0}),
        json.dumps({**good_cut(), "start": -1.0}), json.dumps({**good_cut(), "surprise": 1}),
        json.dumps({k: v for k, v in good_cut().items() if k != "id"}), json.dumps({**good_cut(), "supervisions": [3]}),
    ],
)  # fmt: skip
def test_a_line_that_is_no_cut_is_named(tmp_path: Path, line: str) -> None:
    manifest = tmp_path / "m.jsonl"
    manifest.write_bytes(json.dumps(good_cut()).encode() + b"\n" + line.encode("latin-1") + b"\n")
    read: list[Cut] = []
    with pytest.raises(ValueError, match=r"m\.jsonl:2: "):
        read.extend(read_cuts(manifest))
    assert len(read) <= 1


def test_reading_is_lazy(tmp_path: Path) -> None:
    manifest = write_lines(tmp_path / "m.jsonl", [good_cut(), 7])
    assert next(iter(read_cuts(manifest))).id == "good"


def test_a_line_longer_than_any_cut_is_refused_before_it_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cut_lines, "MAX_LINE_BYTES", 1000)
    with gzip.open(tmp_path / "m.jsonl.gz", "wb") as file:
        file.write(bytes(2**25))
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"m\.jsonl\.gz has a line of more than 1000 bytes"):
        list(read_cuts(tmp_path / "m.jsonl.gz"))
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


def test_a_manifest_that_is_cut_short_is_an_error(tmp_path: Path) -> None:
    data = gzip.compress("".join(json.dumps({**good_cut(), "id": str(i)}) + "\n" for i in range(50)).encode())
    (tmp_path / "m.jsonl.gz").write_bytes(data[:-20])
    with pytest.raises(ValueError, match=r"m\.jsonl\.gz is cut short"):
        list(read_cuts(tmp_path / "m.jsonl.gz"))


def test_what_is_no_manifest_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_cuts(tmp_path / "nowhere.jsonl")
    (tmp_path / "m.pkl").touch()
    for path in (tmp_path, tmp_path / "m.pkl"):
        with pytest.raises(ValueError, match="jsonl"):
            read_cuts(path)
    with pytest.raises(ValueError, match="weight"):
        CutSource("x", weight=float("nan"))


def test_a_corpus_folder_can_move(tmp_path: Path) -> None:
    make_corpus(tmp_path / "here", 3)
    before = [load_recording(cut, Clock()) for cut in read_cuts(tmp_path / "here" / "a.jsonl")]
    shutil.move(tmp_path / "here", tmp_path / "there")
    after = [load_recording(cut, Clock()) for cut in read_cuts(tmp_path / "there" / "a.jsonl")]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_files_elsewhere_are_named_absolutely(tmp_path: Path) -> None:
    make_corpus(tmp_path / "audio", 1)
    write_cuts(read_cuts(tmp_path / "audio" / "a.jsonl"), tmp_path / "manifests" / "m.jsonl")
    (cut,) = read_cuts(tmp_path / "manifests" / "m.jsonl")
    assert cut.recording.sources[0].source == str(tmp_path / "audio" / "audio" / "a000.flac")


@pytest.mark.parametrize("name", ["m.jsonl", "m.jsonl.gz"])
def test_a_manifest_is_written_whole_or_not_at_all(tmp_path: Path, name: str) -> None:
    manifest = make_corpus(tmp_path, 2)
    assert write_cuts(read_cuts(manifest), tmp_path / name) == 2
    before = (tmp_path / name).read_bytes()

    def breaking() -> Iterator[Cut]:
        yield from read_cuts(manifest)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_cuts(breaking(), tmp_path / name)
    assert (tmp_path / name).read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted({"a.jsonl", "audio", name})
    assert name.endswith(".jsonl") or before[4:8] == bytes(4)  # no time in it: the same bytes whenever it is written


def test_audio_inside_a_manifest_is_read_back(tmp_path: Path) -> None:
    (cut,) = read_cuts(make_corpus(tmp_path, 1))
    expected = load_recording(cut, Clock())
    cut.recording = cut.recording.move_to_memory(format="wav")
    write_cuts([cut], tmp_path / "m.jsonl")
    (again,) = read_cuts(tmp_path / "m.jsonl")
    np.testing.assert_allclose(load_recording(again, Clock()), expected, atol=1e-4)


def test_a_folder_of_manifests_is_read_in_the_order_that_the_seed_gives(tmp_path: Path) -> None:
    for index in range(8):
        write_lines(tmp_path / f"{index}.jsonl", [{**good_cut(), "id": f"{index}"}])
    orders = [[cut.id for cut in read_cuts(tmp_path, shuffle_seed=seed)] for seed in (None, "a", "a", "b")]
    assert orders[0] == [str(i) for i in range(8)]
    assert orders[1] == orders[2] != orders[3]
    assert all(sorted(order) == orders[0] for order in orders)


def test_the_language_of_a_source_fills_what_the_manifest_leaves_open(tmp_path: Path) -> None:
    named = good_cut()
    named["supervisions"][0]["language"] = "fr"
    manifest = write_lines(tmp_path / "m.jsonl", [good_cut(), named])
    assert [cut.supervisions[0].language for cut in read_cuts(manifest, language="en")] == ["en", "fr"]


@pytest.fixture
def shar(tmp_path: Path) -> Path:
    """A Shar folder of one shard with 20 recordings, written by Lhotse."""
    manifest = make_corpus(tmp_path / "corpus", 20, seconds=(0.1, 0.2))
    (tmp_path / "shar").mkdir()
    CutSet.from_file(manifest).with_recording_path_prefix(tmp_path / "corpus").to_shar(
        tmp_path / "shar", fields={"recording": "flac"}, shard_size=100
    )
    return tmp_path / "shar"


def loaded(cuts: CutSet) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Waveforms by cut id, and why there is none."""
    audio, lost = {}, {}
    for cut in cuts:
        try:
            audio[cut.id] = load_recording(cut, Clock())
        except BadRecording as bad:
            lost[cut.id] = f"{bad.reason}: {bad}"
    return audio, lost


def test_shar_is_read_as_lhotse_reads_it(shar: Path) -> None:
    audio, lost = loaded(read_cuts(shar))
    expected = {cut.id: cut.load_audio()[0] for cut in CutSet.from_shar(in_dir=shar)}
    assert not lost and audio.keys() == expected.keys()
    assert all(np.array_equal(audio[name], expected[name]) for name in audio)


@pytest.mark.parametrize("damage", ["cut between members", "cut inside a member", "bit in a header", "no tar", "empty"])
def test_a_damaged_shard_loses_no_cut_in_silence(shar: Path, damage: str) -> None:
    tar = shar / "recording.000000.tar"
    data = bytearray(tar.read_bytes())
    members = list(cuts_module.walk(tar))
    boundary = members[20].offset - 512  # audio and description of ten recordings lie before it
    if damage == "cut between members":
        tar.write_bytes(data[:boundary])
    elif damage == "cut inside a member":
        tar.write_bytes(data[: boundary + 600])
    elif damage == "bit in a header":
        data[boundary + 3] ^= 4
        tar.write_bytes(data)
    elif damage == "no tar":
        tar.unlink()
    else:
        tar.write_bytes(b"")
    audio, lost = loaded(read_cuts(shar))
    assert len(audio) + len(lost) == 20
    assert len(audio) == (0 if damage in ("no tar", "empty") else 10)
    assert all(why.startswith(("missing", "unreadable")) and "recording.000000.tar" in why for why in lost.values())


def test_a_shar_manifest_never_runs_code(shar: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    lines = gzip.decompress((shar / "cuts.000000.jsonl.gz").read_bytes()).decode().splitlines()
    cut = json.loads(lines[0])
    cut["recording"]["sources"] = [{"type": "command", "channels": [0], "source": f"touch {canary}"}]
    (shar / "cuts.000000.jsonl.gz").write_bytes(gzip.compress((json.dumps(cut) + "\n").encode()))
    # Lhotse would also read the description inside the tar, and every other field's file.
    (shar / "codes.000000.jsonl").write_text(json.dumps({"cut_id": "a000", "codes": {"array": storage("memory_raw")}}))
    with pytest.raises(ValueError, match="command"):
        loaded(read_cuts(shar))
    assert not canary.exists()


def test_a_recording_in_a_tar_is_read_where_it_lies(tmp_path: Path) -> None:
    manifest = make_corpus(tmp_path, 3)
    expected, _ = loaded(read_cuts(manifest))
    names = [f"{name}.flac" for name in sorted(expected)]
    subprocess.run(["tar", "-C", tmp_path / "audio", "-cf", tmp_path / "a.tar", *names], check=True)
    cuts = list(read_cuts(manifest))
    members = {member.key: member for member in cuts_module.walk(tmp_path / "a.tar")}
    for cut in cuts:
        member = members[cut.id]
        cut.recording.sources = [
            cuts_module.TarSlice("tar", [0], str(tmp_path / "a.tar"), offset=member.offset, size=member.size)
        ]
    write_cuts(cuts, tmp_path / "t.jsonl")
    assert (
        json.loads((tmp_path / "t.jsonl").read_text().splitlines()[0])["recording"]["sources"][0]["source"] == "a.tar"
    )
    again, lost = loaded(read_cuts(tmp_path / "t.jsonl"))
    assert not lost and all(np.array_equal(again[name], expected[name]) for name in expected)
    padded = next(iter(read_cuts(tmp_path / "t.jsonl"))).pad(duration=1.0)  # the way through Lhotse's own loading
    assert len(load_recording(padded, Clock())) == 16000
    (tmp_path / "a.tar").write_bytes((tmp_path / "a.tar").read_bytes()[: members["a002"].offset + 100])
    _, lost = loaded(read_cuts(tmp_path / "t.jsonl"))
    assert list(lost) == ["a002"] and "ends" in lost["a002"]
