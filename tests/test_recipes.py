"""Corpora in the layout they are published in become manifests; hostile and damaged tars do not."""

import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from datamodules import tars
from datamodules.audio import AudioDataModule
from datamodules.cuts import CutSource, read_cuts
from datamodules.prepare import main
from datamodules.recordings import load_recording
from speechlm.tokens.clock import Clock
from tests.audio_corpus import RATE_HZ, tone

EMILIA_RATE_HZ = 24_000


# --- LibriSpeech


@pytest.fixture
def librispeech(tmp_path: Path) -> Path:
    """Three parts of two chapters each, as the archives unpack."""
    corpus = tmp_path / "LibriSpeech"
    for number, part in enumerate(["train-clean-100", "train-other-500", "dev-clean"]):
        for speaker in (10 + number, 20 + number):
            chapter = corpus / part / str(speaker) / "7"
            chapter.mkdir(parents=True)
            lines = []
            for index in range(3):
                name = f"{speaker}-7-{index:04d}"
                soundfile.write(chapter / f"{name}.flac", tone(0.2 + 0.1 * index, seed=speaker + index), RATE_HZ)
                lines.append(f"{name} THE TEXT OF {name}\n")
            (chapter / f"{speaker}-7.trans.txt").write_text("".join(lines))
    return tmp_path


def test_librispeech_becomes_a_manifest_per_part_and_one_of_all_training(librispeech: Path) -> None:
    out = librispeech / "manifests"
    main(["librispeech", "--corpus", str(librispeech), "--out", str(out)])
    names = {"dev-clean.jsonl.gz", "train-clean-100.jsonl.gz", "train-other-500.jsonl.gz", "train.jsonl.gz"}
    assert {path.name for path in out.glob("*.jsonl.gz")} == names
    train, dev = list(read_cuts(out / "train.jsonl.gz")), list(read_cuts(out / "dev-clean.jsonl.gz"))
    assert sorted(cut.id for cut in train) == [f"{s}-7-000{i}" for s in (10, 11, 20, 21) for i in range(3)]
    assert [cut.id for cut in train] != sorted(cut.id for cut in train)  # shuffled, the corpus is in order of speakers
    assert len(dev) == 6
    for cut in dev:
        assert cut.supervisions[0].text == f"the text of {cut.id}"
        assert cut.supervisions[0].speaker == cut.id.split("-")[0] and cut.supervisions[0].language == "en"
        assert len(load_recording(cut, Clock())) == round(cut.duration * RATE_HZ)


def test_librispeech_manifests_inside_the_corpus_move_with_it(librispeech: Path) -> None:
    main(["librispeech", "--corpus", str(librispeech), "--out", str(librispeech), "--parts", "[dev-clean]"])
    assert not (librispeech / "train.jsonl.gz").exists()
    os.rename(librispeech, moved := librispeech.with_name("moved"))
    assert all(len(load_recording(cut, Clock())) for cut in read_cuts(moved / "dev-clean.jsonl.gz"))


@pytest.mark.parametrize("parts", [[], ["--parts", "[test-clean]"]])
def test_a_part_that_is_not_there_is_named(
    tmp_path: Path, parts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "dev-clean").mkdir()
    corpus = tmp_path if parts else tmp_path / "nowhere"
    with pytest.raises(SystemExit) as stopped:
        main(["librispeech", "--corpus", str(corpus), "--out", str(tmp_path / "out"), *parts])
    assert ("test-clean" if parts else "nowhere") in str(stopped.value)
    assert not (tmp_path / "out").exists()


# --- Emilia


def mp3(seconds: float, seed: int) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, tone(seconds, EMILIA_RATE_HZ, seed), EMILIA_RATE_HZ, format="MP3")
    return buffer.getvalue()


def add(tar: tarfile.TarFile, name: str, data: bytes = b"", **fields: Any) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    tar.addfile(info, io.BytesIO(data))


def add_recording(tar: tarfile.TarFile, name: str, speaker: str, yodas: bool = False, **changes: Any) -> None:
    """The two members that a recording is in Emilia, or in Emilia-YODAS."""
    fields = {
        "_id" if yodas else "id": name, "text": f" The text of {name}.", "duration": 0.5, "speaker": speaker,
        "language": name[:2].lower(), "dnsmos": 3.3,
    }  # fmt: skip
    extra = {"phone_count": 9} if yodas else {"wav": f"{name[:9]}/{speaker}/mp3/{name}.mp3"}
    members = [
        (f"{name}.json", json.dumps({**fields, **extra, **changes}, ensure_ascii=False).encode()),
        (f"{name}.mp3", mp3(0.5, seed=sum(name.encode()) % 20)),
    ]
    for member, data in members if not yodas else reversed(members):
        add(tar, member, data)


@pytest.fixture
def emilia(tmp_path: Path) -> Path:
    """Both corpora, two languages, in their public layout."""
    corpus = tmp_path / "Emilia-Dataset"
    for folder, language, speakers in [("Emilia", "EN", 4), ("Emilia", "ZH", 1), ("Emilia-YODAS", "EN", 3)]:
        path = corpus / folder / language / f"{language}-B000000.tar"
        path.parent.mkdir(parents=True, exist_ok=True)
        yodas = folder == "Emilia-YODAS"
        batch = f"{language}_B000000" if yodas else f"{language}_B00000"
        with tarfile.open(path, "w") as tar:
            for speaker in range(speakers):
                for index in range(2):
                    name = f"{batch}_S0000{speaker}_W00000{index}"
                    add_recording(tar, name, f"{batch}_S0000{speaker}", yodas)
    return corpus


def prepare_emilia(corpus: Path, *options: str) -> Path:
    out = corpus.parent / "manifests"
    main(["emilia", "--corpus", str(corpus), "--out", str(out), "--heldout_share", "0", *options])
    return out


def test_emilia_becomes_a_manifest_per_tar_that_leaves_the_tars_as_they_are(
    emilia: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in emilia.rglob("*") if path.is_file()}
    out = prepare_emilia(emilia)
    assert "16 recordings" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in emilia.rglob("*") if path.is_file()} == before
    names = ["Emilia-YODAS_EN_EN-B000000", "Emilia_EN_EN-B000000", "Emilia_ZH_ZH-B000000"]
    assert sorted(path.name for path in (out / "train").iterdir()) == [f"{name}.jsonl.gz" for name in names]
    cuts = list(read_cuts(out / "train"))
    assert len({cut.id for cut in cuts}) == 16
    for cut in cuts:
        supervision = cut.supervisions[0]
        assert supervision.text == f"The text of {cut.id}." and cut.id.startswith(supervision.speaker)
        assert supervision.language == cut.id[:2].lower() and supervision.custom == {"dnsmos": 3.3}
        expected = tone(0.5, RATE_HZ, seed=sum(cut.id.encode()) % 20)
        audio = load_recording(cut, Clock())
        assert len(audio) == len(expected) and np.corrcoef(audio[500:-500], expected[500:-500])[0, 1] > 0.95


def test_emilia_is_trained_on_from_its_tars(emilia: Path) -> None:
    out = prepare_emilia(emilia)
    data = AudioDataModule(Clock(), [CutSource(str(out / "train"))], batch_seconds=2.0, num_buckets=1, epochs=1)
    assert sum(len(batch) for batch in data.train_dataloader()) == 16 and not data.skipped


def test_languages_are_chosen_by_folder(emilia: Path) -> None:
    assert len(list(read_cuts(prepare_emilia(emilia, "--languages", "[zh]") / "train"))) == 2


def test_held_out_speakers_are_whole_and_the_same_each_time(emilia: Path) -> None:
    out = prepare_emilia(emilia, "--heldout_share", "0.5")
    speakers = [{cut.supervisions[0].speaker for cut in read_cuts(out / part)} for part in ("train", "heldout")]
    assert speakers[0] and speakers[1] and not speakers[0] & speakers[1]
    assert len(list(read_cuts(out / "train"))) + len(list(read_cuts(out / "heldout"))) == 16


def test_prepared_tars_are_not_read_again(emilia: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare_emilia(emilia, "--languages", "[en]")
    read: list[Path] = []
    walk: Callable[..., Any] = tars.walk
    monkeypatch.setattr("datamodules.recipes.emilia.walk", lambda path, *a: read.append(path) or walk(path, *a))
    prepare_emilia(emilia)
    assert [path.name for path in read] == ["ZH-B000000.tar"]


def test_processes_give_what_one_gives(emilia: Path) -> None:
    one = prepare_emilia(emilia)
    manifests = {path.name: path.read_bytes() for path in (one / "train").iterdir()}
    main(
        ["emilia", "--corpus", str(emilia), "--out", str(emilia.parent / "two"), "--heldout_share", "0", "--jobs", "2"]
    )
    assert {path.name: path.read_bytes() for path in (emilia.parent / "two" / "train").iterdir()} == manifests


def test_recordings_that_can_not_be_used_are_counted_by_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "c" / "EN" / "EN-B000000.tar"
    path.parent.mkdir(parents=True)
    with tarfile.open(path, "w") as tar:
        add_recording(tar, "EN_B00000_S00000_W000000", "s")
        add_recording(tar, "EN_B00000_S00000_W000001", "s", text=" ")
        add_recording(tar, "EN_B00000_S00000_W000002", "s", text=["no", "string"])
        add_recording(tar, "EN_B00000_S00000_W000003", "s", dnsmos=1.0)
        add(tar, "EN_B00000_S00000_W000004.json", b'{"text": "alone"}')
        add(tar, "EN_B00000_S00000_W000005.json", b'{"text": "a", "dnsmos": 4}')
        add(tar, "EN_B00000_S00000_W000005.mp3", b"<html>")
        add(tar, "EN_B00000_S00000_W000006.json", b"[" * 9999)
        add(tar, "EN_B00000_S00000_W000006.mp3", mp3(0.5, 0))
        add(tar, "README.md", b"hello")
    out = prepare_emilia(tmp_path / "c", "--min_dnsmos", "2.5")
    assert [cut.id for cut in read_cuts(out / "train")] == ["EN_B00000_S00000_W000000"]
    printed = capsys.readouterr().out
    for reason in (
        "7 recordings found = 1 written",
        "3 no transcript",
        "1 low quality",
        "1 no pair of",
        "1 unreadable audio",
    ):
        assert reason in printed


HOSTILE: dict[str, dict[str, Any]] = {
    "leaves the folder": {"name": "../EN_1.mp3"},
    "name leaves the folder": {"name": "/etc/EN_1.mp3"},
    "is a link": {"name": "EN_1.mp3", "type": tarfile.SYMTYPE, "linkname": "/etc/passwd"},
    "link to": {"name": "EN_1.mp3", "type": tarfile.LNKTYPE, "linkname": "../x"},
    "device or another": {"name": "EN_1.mp3", "type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 5},
    "another special file": {"name": "EN_1.mp3", "type": tarfile.FIFOTYPE},
    "more than the": {"name": "EN_1.mp3", "size": 2**40},
    "no description": {"name": "EN_1.json", "size": 2**21},
}


@pytest.mark.parametrize("problem", HOSTILE)
def test_a_hostile_tar_is_refused_and_the_others_are_prepared(emilia: Path, problem: str) -> None:
    bad = emilia / "Emilia" / "EN" / "EN-B000666.tar"
    info = tarfile.TarInfo(HOSTILE[problem]["name"])
    for key, value in HOSTILE[problem].items():
        setattr(info, key, value)
    with tarfile.open(bad, "w") as tar:
        add_recording(tar, "EN_B00666_S00000_W000000", "s")
    good = bad.read_bytes().rstrip(b"\0")
    good += bytes(-len(good) % 512)
    partner = tarfile.TarInfo("EN_1.mp3" if info.name.endswith("json") else "EN_1.json").tobuf()
    data = bytes(min(info.size, 2**21)) if info.isreg() else b""
    bad.write_bytes(good + partner + info.tobuf() + data + bytes(1024))
    files = {path for path in emilia.parent.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit, match=r"(?s)1 of 4 tars could not be read:.*EN-B000666.*" + problem):
        prepare_emilia(emilia)
    written = {path for path in emilia.parent.rglob("*") if path.is_file()} - files
    assert len(written) == 3 and all(path.name.endswith(".jsonl.gz") for path in written)
    assert not (emilia.parent / "manifests" / "train" / "Emilia_EN_EN-B000666.jsonl.gz").exists()


def test_a_sparse_member_is_refused(tmp_path: Path) -> None:
    info = tarfile.TarInfo("EN_1.mp3")
    info.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[483:495] = b"%011o\0" % 2**33  # its size when unfolded
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + 8 * 32 + sum(header[156:512]))
    (tmp_path / "a.tar").write_bytes(bytes(header) + bytes(1024))
    with pytest.raises(ValueError, match="sparse"):
        list(tars.walk(tmp_path / "a.tar"))


@pytest.mark.parametrize(
    "damage", ["between members", "inside a member", "bit in a header", "compressed", "empty", "html"]
)
def test_a_damaged_tar_is_refused_not_taken_for_a_short_one(emilia: Path, damage: str) -> None:
    tar = emilia / "Emilia" / "EN" / "EN-B000000.tar"
    data = bytearray(tar.read_bytes())
    boundary = list(tars.walk(tar))[4].offset - 512
    if damage == "bit in a header":
        data[boundary + 2] ^= 1
    cut = {
        "between members": data[:boundary],
        "inside a member": data[: boundary + 700],
        "empty": b"",
        "html": b"<html>",
    }
    tar.write_bytes(cut.get(damage, data))
    if damage == "compressed":
        with tarfile.open(tar, "w:gz") as packed:
            add_recording(packed, "EN_B00000_S00000_W000000", "s")
    with pytest.raises(SystemExit, match=r"(?s)1 of 3 tars could not be read.*Emilia/EN/EN-B000000\.tar"):
        prepare_emilia(emilia)
    assert not (emilia.parent / "manifests" / "train" / "Emilia_EN_EN-B000000.jsonl.gz").exists()


def test_a_corpus_without_tars_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"no \.tar for XX under"):
        prepare_emilia(tmp_path / "c", "--languages", "[xx]")


def test_an_argument_that_is_wrong_exits_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["emilia", "--corpus", "x", "--out", "y", "--jobs", "many"])
    assert stopped.value.code == 2 and "jobs" in capsys.readouterr().err
