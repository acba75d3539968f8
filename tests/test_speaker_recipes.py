"""LibriTTS and VCTK, in the layout they are published in, become manifests."""

from pathlib import Path

import pytest
import soundfile

from datamodules.cuts import read_cuts
from datamodules.prepare import main
from datamodules.recordings import load_recording
from speechlm.tokens.clock import Clock
from tests.audio_corpus import tone

CLOCK = Clock(sample_rate_hz=22_050, hop_samples=256)


@pytest.fixture
def libritts(tmp_path: Path) -> Path:
    for part, speaker in (("train-clean-100", "14"), ("train-clean-360", "16"), ("dev-clean", "84")):
        chapter = tmp_path / part / speaker / "7"
        chapter.mkdir(parents=True)
        names = [f"{speaker}_7_00000{i}_000000" for i in range(3)]
        for i, name in enumerate(names):
            soundfile.write(chapter / f"{name}.wav", tone(0.3, 24_000, seed=i), 24_000)
        texts = "".join(f"{name}\tMr. {name}\tMister {name}\n" for name in names)
        (chapter / f"{speaker}_7.trans.tsv").write_text(texts)
        (chapter / f"{speaker}_7.book.tsv").write_text("".join(f"{name}\ta\tb\t20.5\n" for name in names))
    (tmp_path / "SPEAKERS.txt").write_text(";ID |SEX|\n14 | F | a | 1 | b\n16 | M | a | 1 | b\n84 | F | a | 1 | b\n")
    return tmp_path


def test_libritts_has_a_manifest_per_part_with_speakers(libritts: Path):
    out = libritts / "manifests"
    main(["libritts", "--corpus", str(libritts), "--out", str(out)])
    train = list(read_cuts(out / "train.jsonl.gz"))
    assert len(train) == 6 and len(list(read_cuts(out / "dev-clean.jsonl.gz"))) == 3
    cut = next(cut for cut in train if cut.id == "14_7_000001_000000")
    assert (cut.supervisions[0].speaker, cut.supervisions[0].language) == ("14", "en")
    assert cut.supervisions[0].text == "Mister 14_7_000001_000000"
    assert len(load_recording(cut, CLOCK)) == 6615


@pytest.fixture
def vctk(tmp_path: Path) -> Path:
    lines = ["ID AGE GENDER ACCENTS REGION COMMENTS"]
    for speaker in ("p225", "p226", "p228", "p241", "p362"):
        lines.append(f"{speaker} 23 F English Southern England")
        for kind in ("wav48_silence_trimmed", "txt"):
            (tmp_path / kind / speaker).mkdir(parents=True)
        for i in (1, 2):
            name = f"{speaker}_00{i}"
            (tmp_path / "txt" / speaker / f"{name}.txt").write_text(f"Sentence {i}.\n")
            for microphone in ("mic1", "mic2"):
                path = tmp_path / "wav48_silence_trimmed" / speaker / f"{name}_{microphone}.flac"
                soundfile.write(path, tone(0.3, 48_000, seed=i), 48_000)
    (tmp_path / "speaker-info.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_vctk_holds_speakers_out(vctk: Path):
    main(["vctk", "--corpus", str(vctk), "--out", str(vctk / "manifests")])
    train, heldout = (list(read_cuts(vctk / "manifests" / f"{name}.jsonl.gz")) for name in ("train", "heldout"))
    assert sorted(cut.id for cut in train) == ["p225_001_mic2", "p225_002_mic2"]
    assert {cut.supervisions[0].speaker for cut in heldout} == {"p226", "p228", "p241", "p362"}
    assert train[0].supervisions[0].text.startswith("Sentence") and train[0].supervisions[0].language == "en"
    assert len(load_recording(train[0], CLOCK)) == 6615


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["libritts"], "no part of LibriTTS"),
        (["libritts", "--parts", "[train-clean-1]"], "no train-clean-1 "),
        (["vctk"], "no wav48_silence_trimmed, txt, speaker-info.txt"),
    ],
)
def test_a_corpus_that_is_not_there_is_named(tmp_path: Path, arguments: list[str], message: str):
    with pytest.raises(SystemExit, match=message):
        main([*arguments, "--corpus", str(tmp_path), "--out", str(tmp_path / "out")])


def test_a_speaker_that_does_not_exist_is_not_held_out(vctk: Path):
    with pytest.raises(SystemExit, match="no speaker p999"):
        main(["vctk", "--corpus", str(vctk), "--out", str(vctk / "manifests"), "--heldout", "[p999]"])
