"""Corpora in the layout they are published in become manifests that training reads; other folders are refused by name."""

import inspect
import itertools
import json
import os
import re
import shlex
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import yaml
from lhotse.recipes import commonvoice as lhotse_commonvoice
from lhotse.recipes import prepare_mls

from datamodules.audio import AudioDataModule
from datamodules.cuts import CutSource, read_cuts
from datamodules.prepare import RECIPES, main
from datamodules.recipes import json_items, part_writer
from datamodules.recipes.gigaspeech import clean
from datamodules.recipes.utterances import Utterance, write_utterances
from datamodules.recordings import load_recording
from speechlm.tokens.clock import Clock
from tests.audio_corpus import RATE_HZ, tone


def write(path: Path, seconds: float = 0.3, seed: int = 0, rate_hz: int = RATE_HZ, **form: str) -> None:
    """A recording; libsndfile takes the format from the name, Opus excepted."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, tone(seconds, rate_hz, seed), rate_hz, **form)


def lines(path: Path, *content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for line in content), encoding="utf-8")


def prepare(name: str, corpus: Path, *options: str) -> Path:
    """Run the command; the folder of the manifests."""
    out = corpus.parent / "manifests"
    main([name, "--corpus", str(corpus), "--out", str(out), *options])
    return out


def texts_of(manifest: Path) -> dict[str, str]:
    """Text by id, of cuts whose audio is there and as long as they say."""
    cuts = list(read_cuts(manifest))
    for cut in cuts:
        assert abs(len(load_recording(cut, Clock())) / RATE_HZ - cut.duration) < 0.001
    return {cut.id: cut.supervisions[0].text for cut in cuts}


def trained_on(*manifests: Path) -> int:
    """Recordings that a training run gets of manifests."""
    sources = [CutSource(str(manifest)) for manifest in manifests]
    data = AudioDataModule(Clock(), sources, batch_seconds=2.0, num_buckets=1, epochs=1)
    return sum(len(batch) for batch in data.train_dataloader()) - data.skipped.total()


# --- AISHELL-1


@pytest.fixture
def aishell(tmp_path: Path) -> Path:
    """As it unpacks: a table of all transcripts, words apart, and a folder for each speaker."""
    wav, table = tmp_path / "aishell" / "data_aishell" / "wav", []
    for part, speaker in (("train", "S0002"), ("train", "S0003"), ("dev", "S0724"), ("test", "S0764")):
        for index in range(2):
            name = f"BAC009{speaker}W012{index}"
            write(wav / part / speaker / f"{name}.wav", seed=index)
            table.append(f"{name} 而 对 楼市 成交 抑制 作用 ａ{index}")
    lines(wav.parent / "transcript" / "aishell_transcript_v0.8.txt", *table)
    return tmp_path / "aishell"


def test_aishell_has_three_parts_of_mandarin_without_blanks(aishell: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(aishell / "data_aishell" / "wav" / "train" / "S0002" / "BAC009S0002W0999.wav")
    out = prepare("aishell", aishell)
    assert sorted(path.name for path in out.glob("*.jsonl.gz")) == ["dev.jsonl.gz", "test.jsonl.gz", "train.jsonl.gz"]
    train = texts_of(out / "train.jsonl.gz")
    assert len(train) == 4 and set(train.values()) == {"而对楼市成交抑制作用A0", "而对楼市成交抑制作用A1"}
    assert all(c.supervisions[0].language == "zh" for c in read_cuts(out / "dev.jsonl.gz"))
    printed = capsys.readouterr().out
    assert "train: 5 recordings found = 4 written (0.00 h) + 1 left out (1 no transcript)" in printed
    assert trained_on(out / "train.jsonl.gz", out / "test.jsonl.gz") == 6


def test_aishell_still_packed_says_what_to_unpack(aishell: Path) -> None:
    wav = aishell / "data_aishell" / "wav"
    os.rename(wav, wav.with_name("unpacked"))
    wav.mkdir()
    (wav / "S0002.tar.gz").touch()
    with pytest.raises(SystemExit, match=r"archives still packed"):
        prepare("aishell", aishell)


def test_a_damaged_file_ends_lhotse_s_recipes_with_its_name_and_no_manifest(aishell: Path) -> None:
    (aishell / "data_aishell" / "wav" / "train" / "S0002" / "BAC009S0002W0120.wav").write_text("<html>")
    with pytest.raises(SystemExit, match="BAC009S0002W0120"):
        prepare("aishell", aishell)
    assert not (aishell.parent / "manifests").exists()


# --- GigaSpeech and WenetSpeech


def giga_audio(name: str, source: str, segments: list[tuple[str, float, float, str, list[str]]]) -> dict[str, Any]:
    """What GigaSpeech.json has of one recording."""
    return {
        "title": "N/A", "url": "N/A", "path": f"audio/{source}/P0000/{name}.opus", "aid": name, "source": source,
        "codec": "ogg", "channels": 1, "md5": "0" * 32, "duration": 3.0, "sample_rate": 16000, "speaker": "N/A",
        "category": "N/A", "subsets": sorted({subset for segment in segments for subset in segment[4]}),
        "segments": [
            {"sid": sid, "speaker": "N/A", "begin_time": begin, "end_time": end, "text_tn": text, "subsets": subsets}
            for sid, begin, end, text, subsets in segments
        ],
    }  # fmt: skip


GIGA = [
    giga_audio(
        "POD0000000001", "podcast",
        [
            ("POD0000000001_S0000001", 0.5, 1.25, "AS IT'S CALLED <COMMA> A TEST <PERIOD>", ["{XS}", "{XL}"]),
            ("POD0000000001_S0000002", 1.25, 2.0, "WHY <QUESTIONMARK>", ["{XL}"]),
            ("POD0000000001_S0000003", 2.0, 3.0, "<MUSIC>", ["{XL}"]),
            ("POD0000000001_S0000004", 3.5, 4.0, "BEHIND THE END", ["{XL}"]),
        ],
    ),
    giga_audio("YOU0000000002", "youtube", [("YOU0000000002_S0000001", 0.0, 1.0, "OF DEV", ["{DEV}"])]),
    giga_audio("AUD0000000003", "audiobook", [("AUD0000000003_S0000001", 0.0, 1.0, "NOT THERE", ["{XL}"])]),
    giga_audio("YOU0000000004", "youtube", [("YOU0000000004_S0000001", 2.0, 3.0, "OF TEST", ["{TEST}"])]),
]  # fmt: skip


@pytest.fixture
def gigaspeech(tmp_path: Path) -> Path:
    """Long Opus recordings, one of which is missing, and one JSON object that describes all."""
    corpus = tmp_path / "GigaSpeech"
    for audio in GIGA[:2] + GIGA[3:]:
        write(corpus / audio["path"], 3.0, format="OGG", subtype="OPUS")
    table = {"dataset": "GigaSpeech", "language": "EN", "version": "v1.0.0", "audios": GIGA}
    (corpus / "GigaSpeech.json").write_text(json.dumps(table, indent=2))
    return corpus


def test_gigaspeech_has_a_cut_for_each_segment_with_marks_for_tags(
    gigaspeech: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = prepare("gigaspeech", gigaspeech)
    assert texts_of(out / "train.jsonl.gz") == {
        "POD0000000001_S0000001": "as it's called, a test.", "POD0000000001_S0000002": "why?",
    }  # fmt: skip
    (dev,) = read_cuts(out / "dev.jsonl.gz")
    assert (dev.id, dev.start, dev.duration, dev.recording.duration) == ("YOU0000000002_S0000001", 0.0, 1.0, 3.0)
    first = next(cut for cut in read_cuts(out / "train.jsonl.gz") if cut.id.endswith("1"))
    whole, _ = soundfile.read(gigaspeech / GIGA[0]["path"], dtype="float32")
    heard = load_recording(first, Clock())
    assert np.corrcoef(heard, whole[8000:20000])[0, 1] > 0.99  # seeking in Opus is exact to its pre-roll only
    reasons = "3 left out (1 no audio file, 1 no speech, 1 outside of its recording)"
    assert f"train: 5 recordings found = 2 written (0.00 h) + {reasons}" in capsys.readouterr().out
    assert trained_on(out / "train.jsonl.gz") == 2


def test_a_subset_of_gigaspeech_is_chosen(gigaspeech: Path) -> None:
    assert list(texts_of(prepare("gigaspeech", gigaspeech, "--subset", "XS") / "train.jsonl.gz")) == [
        "POD0000000001_S0000001"
    ]
    with pytest.raises(SystemExit, match="XS, S, M, L, XL, got 'HUGE'"):
        prepare("gigaspeech", gigaspeech, "--subset", "HUGE")


def test_tags_become_marks_and_nothing_else_is_lost() -> None:
    assert clean("WELL <COMMA> NO <EXCLAMATIONPOINT>", lower=False) == ("WELL, NO!", "")
    assert clean("<COMMA> SO <PERIOD>", lower=True) == ("so.", "")
    assert clean("A <NOISE>", lower=True) == ("", "no speech")
    assert clean("<PERIOD>", lower=True) == ("", "no transcript")


@pytest.fixture
def wenetspeech(tmp_path: Path) -> Path:
    """Long Opus recordings by the source they are from, and one JSON object that describes all."""
    corpus, audios = tmp_path / "WenetSpeech", []
    for part, subsets in (("train/youtube/B00000", ["M", "L"]), ("dev", ["DEV"]), ("test_net", ["TEST_NET"])):
        name = f"Y0000000000_{part[:4]}"
        write(corpus / "audio" / part / f"{name}.opus", 2.0, format="OGG", subtype="OPUS")
        rows = [
            ("S00000", 0.1, 0.9, "怎么样这些日子住得还习惯吧"),
            ("S00001", 1.0, 1.9, "挺好的"),
            ("S00002", 1.9, 2.0, " "),
        ]
        segments = [
            {"sid": f"{name}_{s}", "confidence": 1.0, "begin_time": b, "end_time": e, "subsets": subsets, "text": text}
            for s, b, e, text in rows
        ]
        fields = {"aid": name, "duration": 2.0, "md5": "0" * 32, "source": "youtube", "tags": ["drama"], "url": "N/A"}
        audios.append({**fields, "path": f"audio/{part}/{name}.opus", "segments": segments})
    (corpus / "WenetSpeech.json").write_text(json.dumps({"audios": audios}, ensure_ascii=False), encoding="utf-8")
    return corpus


def test_wenetspeech_has_a_cut_for_each_segment(wenetspeech: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = prepare("wenetspeech", wenetspeech)
    names = ["dev", "test_meeting", "test_net", "train"]
    assert sorted(path.name for path in out.glob("*.jsonl.gz")) == [f"{name}.jsonl.gz" for name in names]
    assert texts_of(out / "train.jsonl.gz") == {
        "Y0000000000_trai_S00000": "怎么样这些日子住得还习惯吧", "Y0000000000_trai_S00001": "挺好的",
    }  # fmt: skip
    assert all(cut.supervisions[0].language == "zh" for cut in read_cuts(out / "test_net.jsonl.gz"))
    printed = capsys.readouterr().out
    assert "train: 3 recordings found = 2 written (0.00 h) + 1 left out (1 no transcript)" in printed
    assert "test_meeting: 0 recordings found" in printed


@pytest.mark.parametrize("damage", ["cut short", "no list", "a value", "an object without a path"])
def test_a_damaged_table_leaves_no_manifest(gigaspeech: Path, damage: str) -> None:
    table = gigaspeech / "GigaSpeech.json"
    text = table.read_text()
    changed = {
        "cut short": text[: len(text) * 2 // 3], "no list": text.replace('"audios"', '"videos"'),
        "a value": text.replace('"audios": [', '"audios": [7,'),
        "an object without a path": text.replace('"path"', '"way"'),
    }  # fmt: skip
    table.write_text(changed[damage])
    with pytest.raises(SystemExit, match=r"GigaSpeech\.json"):
        prepare("gigaspeech", gigaspeech)
    assert not list((gigaspeech.parent / "manifests").iterdir())


@pytest.mark.parametrize("chunk", [1, 7, 64, 2**20])
def test_items_are_the_same_whatever_is_read_at_a_time(tmp_path: Path, chunk: int) -> None:
    path = tmp_path / "a.json"
    wanted = [{"a": [1, {"b": '}]\\"'}]}, {}, {"c": -12.5e3, "汉": None}]
    other = {"before": {"audios": [3]}, "number": 12345, "audios": wanted, "after": "x"}
    path.write_text(json.dumps(other, indent=1, ensure_ascii=False), encoding="utf-8")
    assert list(json_items.items(path, "audios", chunk)) == wanted
    path.write_text('{"audios": [] }')
    assert list(json_items.items(path, "audios", chunk)) == []


# --- MLS


@pytest.fixture
def mls(tmp_path: Path) -> Path:
    """Two languages as FLAC, in the layout of the archives."""
    corpus = tmp_path / "MLS"
    for language, speaker in (("german", 4800), ("polish", 6892)):
        folder = corpus / f"mls_{language}"
        lines(folder / "metainfo.txt", "SPEAKER | GENDER | PARTITION | MINUTES | BOOK ID | TITLE | CHAPTER",
              f" {speaker} |   M    |  train   |  15.2  | 10003 | Die Räuber | Erstes")  # fmt: skip
        for number, part in enumerate(("train", "dev", "test")):
            names = [f"{speaker}_1000{number}_00000{index}" for index in range(3)]
            for index, name in enumerate(names):
                write(folder / part / "audio" / str(speaker) / f"1000{number}" / f"{name}.flac", seed=index)
            lines(folder / part / "transcripts.txt", *(f"{name}\tübersetzung von {name}" for name in names))
            lines(folder / part / "segments.txt", *(f"{name}\thttp://x/a.mp3\t1.0\t2.0" for name in names))
        (folder / "train" / "limited_supervision").mkdir()
    (corpus / "mls_lm_german").mkdir()
    return corpus


def test_mls_has_the_cuts_of_lhotse_s_recipe(mls: Path) -> None:
    out, theirs = prepare("mls", mls), prepare_mls(mls, opus=False)
    for code, language in (("de", "german"), ("pl", "polish")):
        for part in ("train", "dev", "test"):
            found = theirs[language][part]
            cuts = {cut.id: cut for cut in read_cuts(out / code / f"{part}.jsonl.gz")}
            assert sorted(cuts) == sorted(found["recordings"].ids)
            for said in found["supervisions"]:
                cut, recording = cuts[said.id], found["recordings"][said.id]
                ours = cut.supervisions[0]
                assert (ours.text, ours.speaker, ours.gender, ours.language) == (
                    said.text, said.speaker, said.gender, code,
                )  # fmt: skip
                assert cut.recording.to_dict() == recording.to_dict()
    assert trained_on(out / "de" / "train.jsonl.gz", out / "pl" / "train.jsonl.gz") == 6


def test_mls_in_opus_is_read_without_another_program(mls: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = mls / "mls_german_opus"
    os.rename(mls / "mls_german", folder)
    for path in folder.rglob("*.flac"):
        audio, rate_hz = soundfile.read(path)
        soundfile.write(path.with_suffix(".opus"), audio, rate_hz, format="OGG", subtype="OPUS")
        path.unlink()
    lost, broken, *_ = sorted((folder / "train").rglob("*.opus"))
    lost.unlink()
    broken.write_text("<html>")
    out = prepare("mls", mls, "--languages", "[de]", "--jobs", "2")
    assert len(texts_of(out / "de" / "train.jsonl.gz")) == 1 and not (out / "pl").exists()
    reasons = "2 left out (1 no audio file, 1 unreadable audio)"
    assert f"de train: 3 recordings found = 1 written (0.00 h) + {reasons}" in capsys.readouterr().out


def test_the_same_language_twice_is_refused(mls: Path) -> None:
    (mls / "mls_german_opus").mkdir()
    with pytest.raises(SystemExit, match=r"mls_german and .*mls_german_opus are the same language"):
        prepare("mls", mls)


# --- Common Voice


HEADER = [
    "client_id",
    "path",
    "sentence",
    "up_votes",
    "down_votes",
    "age",
    "gender",
    "accents",
    "variant",
    "locale",
    "segment",
]


@pytest.fixture
def commonvoice(tmp_path: Path) -> Path:
    """Two locales of a release: MP3 clips, and a table for each part."""
    corpus = tmp_path / "cv-corpus-17.0-2024-03-15"
    for locale, said in (("en", "Hello there."), ("zh-CN", "你好，世界。")):
        for number, part in enumerate(("train", "dev", "test")):
            rows = ["\t".join(HEADER)]
            for index in range(3):
                name = f"common_voice_{locale}_{10 * number + index}.mp3"
                write(corpus / locale / "clips" / name, seed=index, rate_hz=32_000)
                row = [f"{index:0128x}", name, said, "2", "0", "twenties", "female", "", "", locale, ""]
                rows.append("\t".join(row))
            lines(corpus / locale / f"{part}.tsv", *rows)
    return corpus


def test_common_voice_has_the_cuts_of_lhotse_s_recipe(commonvoice: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = prepare("commonvoice", commonvoice)
    threads = lambda max_workers, mp_context: ThreadPoolExecutor(max_workers)  # noqa: E731 - new processes take seconds
    monkeypatch.setattr(lhotse_commonvoice, "ProcessPoolExecutor", threads)
    theirs = lhotse_commonvoice.prepare_commonvoice(
        commonvoice, commonvoice.parent / "lhotse", languages=["en", "zh-CN"]
    )
    for locale, code in (("en", "en"), ("zh-CN", "zh")):
        for part in ("train", "dev", "test"):
            found = theirs[locale][part]
            cuts = {cut.id: cut for cut in read_cuts(out / locale / f"{part}.jsonl.gz")}
            assert len(cuts) == 3 and sorted(cuts) == sorted(found["recordings"].ids)
            for said in found["supervisions"]:
                ours = cuts[said.id].supervisions[0]
                assert (ours.text, ours.speaker, ours.gender, ours.language) == (
                    said.text, said.speaker, said.gender, code,
                )  # fmt: skip
                assert cuts[said.id].recording.to_dict() == found["recordings"][said.id].to_dict()


def test_tables_of_other_releases_are_read_too(commonvoice: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Columns come and go; some sentences carry the marks of a table that was quoted once."""
    rows = [
        ["sentence", "path", "client_id", "accent"],
        ['"""Well"", she said."', "common_voice_en_0", "a", ""],  # the first releases have no .mp3 in the table
        ['He said "yes"', "common_voice_en_1.mp3", "b", ""],
        ["gone", "common_voice_en_99.mp3", "b", ""],
        ["  ", "common_voice_en_2.mp3", "b"],
    ]
    lines(commonvoice / "en" / "train.tsv", *("\t".join(row) for row in rows))
    out = prepare("commonvoice", commonvoice / "en", "--parts", "[train]")
    texts = texts_of(out / "en" / "train.jsonl.gz")
    assert set(texts.values()) == {'"Well", she said.', 'He said "yes"'}
    assert "2 left out (1 no audio file, 1 no transcript)" in capsys.readouterr().out


def test_a_table_without_its_columns_is_refused(commonvoice: Path) -> None:
    lines(commonvoice / "en" / "train.tsv", "client_id\tpath\ttext")
    with pytest.raises(
        SystemExit, match=r"train\.tsv has no column sentence; its first line has client_id, path, text"
    ):
        prepare("commonvoice", commonvoice, "--languages", "[en]")


# --- all


ALL = ["aishell", "gigaspeech", "wenetspeech", "mls", "commonvoice", "librispeech", "libritts", "vctk"]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("there", ["other files", "nothing", "no folder"])
def test_another_folder_is_refused_with_what_was_expected_and_what_is_there(
    tmp_path: Path, name: str, there: str
) -> None:
    corpus = tmp_path / "corpus"
    if there != "no folder":
        corpus.mkdir()
    if there == "other files":
        (corpus / "holiday.mp4").touch()
    found = {"other files": "it has holiday.mp4", "nothing": "it has nothing", "no folder": "there is no such folder"}
    with pytest.raises(SystemExit, match=rf"(?s)there is no .*{found[there]}.*fetch"):
        prepare(name, corpus)
    assert not (tmp_path / "manifests").exists()


def test_a_manifest_is_the_same_whatever_order_its_recordings_come_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(part_writer, "BUCKET_BYTES", 512)  # so that they lie on the disk
    write(tmp_path / "a.flac")
    made = []
    for order in (1, -1):
        said = [Utterance(f"r{i}", tmp_path / "a.flac", f"text {i}", "en") for i in range(300)][::order]
        with part_writer.PartWriter(tmp_path / "out" / "train.jsonl.gz", 7) as part:
            write_utterances([*said, said[0]], part, jobs=3)
        made.append((tmp_path / "out" / "train.jsonl.gz").read_bytes())
    assert made[0] == made[1]
    names = [cut.id for cut in read_cuts(tmp_path / "out" / "train.jsonl.gz")]
    assert len(names) == 300 == len(set(names))
    assert abs(np.corrcoef(range(300), [int(name[1:]) for name in names])[0, 1]) < 0.2
    assert "301 recordings found = 300 written (0.02 h) + 1 left out (1 same id again)" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "out").glob("*.jsonl.gz")] == ["train.jsonl.gz"]


# --- the configs that name them


CONFIGS = Path(__file__).parents[1] / "configs" / "speech_tokenizer"


def sources_of(config: Path) -> list[dict[str, Any]]:
    return yaml.safe_load(config.read_text(encoding="utf-8"))["data"]["init_args"]["train"]


@pytest.mark.parametrize("config", [CONFIGS / "paper_mixture.yaml", CONFIGS / "tiny" / "paper_mixture.yaml"])
def test_the_mixture_has_three_pseudo_labelled_recordings_for_each_supervised_one(config: Path) -> None:
    sources = sources_of(config)
    pseudo = [s["weight"] for s in sources if "pseudo" in s["path"]] or [sources[1]["weight"]]
    assert sum(pseudo) == pytest.approx(3.0) and sum(s["weight"] for s in sources) == pytest.approx(4.0)


@pytest.mark.parametrize("config", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_command_that_a_config_is_prepared_by_exists(config: Path) -> None:
    """And writes the manifests that the config names."""
    for command in re.findall(r"python -m datamodules\.prepare (.*)", config.read_text(encoding="utf-8")):
        name, *words = shlex.split(command)
        known = inspect.signature(RECIPES[name]).parameters
        options = {word.removeprefix("--"): value for word, value in itertools.pairwise(words) if word.startswith("--")}
        assert options.keys() <= known.keys()
        val = yaml.safe_load(config.read_text())["data"]["init_args"]["val"].values()
        named = [s if isinstance(s, str) else s["path"] for s in [*sources_of(config), *val]]
        assert any(path.startswith(options["out"] + "/") for path in named)
