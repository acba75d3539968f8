"""Emilia and Emilia-YODAS (https://huggingface.co/datasets/amphion/Emilia-Dataset) as cut manifests; the tars stay as they are.

The corpus is a folder of tars per language, `Emilia/EN/EN-B000000.tar` and `Emilia-YODAS/EN/EN-B000000.tar`; in each tar a
recording is two members, `<id>.json` and `<id>.mp3`. The JSON has text, duration, speaker, language and dnsmos (a quality
score), and the id as `id` in Emilia, as `_id` in Emilia-YODAS.

The manifests name byte ranges of the tars: nothing is unpacked, copied or decoded but the MP3 headers. There is one manifest
for each tar, so the work can be spread, interrupted and taken up again.
"""

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import soundfile
from lhotse import MonoCut, Recording, SupervisionSegment

from datamodules.cut_lines import TarSlice
from datamodules.cuts import write_cuts
from datamodules.recipes.part_writer import Tally
from datamodules.tars import Member, read_member, walk

AUDIO_SUFFIXES = (".mp3", ".flac", ".wav", ".ogg")
MAX_JSON_BYTES = 2**20
MAX_AUDIO_BYTES = 64 * 2**20


@dataclass
class Report(Tally):
    """What became of one tar, or of many added up."""

    failed: list[str] = field(default_factory=list)


def prepare(
    corpus: Path,
    out: Path,
    languages: list[str] | None = None,
    min_dnsmos: float = 0.0,
    heldout_share: float = 0.0005,
    jobs: int = 1,
) -> None:
    """Write `train/<tar>.jsonl.gz` and `heldout/<tar>.jsonl.gz` for every tar that has none yet.

    Args:
        corpus: a folder with the tars, at any depth.
        out: where the manifests go; they name the tars by their absolute paths.
        languages: such as [en, zh], by the name of the tar's folder; all by default.
        min_dnsmos: recordings of a lower quality score are left out.
        heldout_share: share of the speakers, chosen by the hash of their names, who are held out.
        jobs: processes.

    Raises:
        ValueError: no tar is there, or some could not be read, which are named; the others are done then.
    """
    wanted = {language.upper() for language in languages or []}
    tars = [tar for tar in sorted(corpus.rglob("*.tar")) if not wanted or tar.parent.name.upper() in wanted]
    if not tars:
        raise ValueError(f"there is no .tar for {', '.join(sorted(wanted)) or 'any language'} under {corpus}")
    work = partial(prepare_tar, corpus=corpus, out=out, min_dnsmos=min_dnsmos, heldout_share=heldout_share)
    total = Report()
    if jobs == 1:
        reports: Iterator[Report] = map(work, tars)
        _sum_up(reports, total)
    else:
        with ProcessPoolExecutor(jobs) as pool:
            _sum_up(pool.map(work, tars), total)
    print(total)
    if total.failed:
        raise ValueError(f"{len(total.failed)} of {len(tars)} tars could not be read:\n" + "\n".join(total.failed))


def prepare_tar(tar: Path, corpus: Path, out: Path, min_dnsmos: float, heldout_share: float) -> Report:
    """The manifests of one tar, the one for training last: it is the sign that the tar is done."""
    name = "_".join(tar.relative_to(corpus).with_suffix("").parts) + ".jsonl.gz"
    report = Report()
    if (out / "train" / name).exists():
        return report
    chosen: dict[bool, list[MonoCut]] = {False: [], True: []}
    try:
        for audio, text in _pairs(tar, report):
            cut = _cut(tar, audio, text, min_dnsmos, report)
            if cut is not None:
                chosen[_is_heldout(cut.supervisions[0].speaker, heldout_share)].append(cut)
    except (ValueError, OSError, EOFError) as error:
        return Report(failed=[f"{tar}: {error}"])
    if chosen[True]:
        write_cuts(chosen[True], out / "heldout" / name)
    write_cuts(chosen[False], out / "train" / name)
    report.kept = sum(map(len, chosen.values()))
    report.seconds = sum(cut.duration for cuts in chosen.values() for cut in cuts)
    assert report.found == report.kept + report.left_out.total(), f"{tar}: {report}"
    return report


def _sum_up(reports: Iterator[Report], total: Report) -> None:
    for report in reports:
        total.add(report)
        total.failed += report.failed


def _pairs(tar: Path, report: Report) -> Iterator[tuple[Member, Member]]:
    """(audio, JSON) of each recording, whichever comes first in the tar."""
    waiting: dict[str, Member] = {}
    for member in walk(tar, MAX_AUDIO_BYTES):
        if member.suffix not in (".json", *AUDIO_SUFFIXES):
            continue
        other = waiting.pop(member.key, None)
        if other is None or (other.suffix == ".json") == (member.suffix == ".json"):
            waiting[member.key] = member
        else:
            report.found += 1
            yield (other, member) if member.suffix == ".json" else (member, other)
    report.found += len(waiting)
    if waiting:
        report.left_out["no pair of audio and JSON"] += len(waiting)


def _cut(tar: Path, audio: Member, text: Member, min_dnsmos: float, report: Report) -> MonoCut | None:
    """The cut of one recording, None where it can not be used, which is counted."""
    fields = _fields(tar, text)
    spoken = fields.get("text")
    if not isinstance(spoken, str) or not spoken.strip():
        report.left_out["no transcript"] += 1
        return None
    quality = fields.get("dnsmos")
    if min_dnsmos > 0 and not (isinstance(quality, int | float) and quality >= min_dnsmos):
        report.left_out["low quality"] += 1
        return None
    try:
        info = soundfile.info(BytesIO(read_member(tar, audio.offset, audio.size)))
    except soundfile.LibsndfileError:
        report.left_out["unreadable audio"] += 1
        return None
    name = str(fields.get("id") or fields.get("_id") or audio.key)
    duration = info.frames / info.samplerate
    source = TarSlice("tar", list(range(info.channels)), str(tar), offset=audio.offset, size=audio.size)
    recording = Recording(name, [source], info.samplerate, info.frames, duration, channel_ids=source.channels)
    supervision = SupervisionSegment(
        id=name,
        recording_id=name,
        start=0.0,
        duration=duration,
        text=spoken.strip(),
        language=str(fields.get("language") or "").lower() or None,
        speaker=str(fields.get("speaker") or "") or None,
        custom={"dnsmos": quality},
    )
    return MonoCut(name, 0.0, duration, 0, supervisions=[supervision], recording=recording)


def _fields(tar: Path, member: Member) -> dict[str, Any]:
    if member.size > MAX_JSON_BYTES:
        raise ValueError(f"member {member.name!r} has {member.size} bytes, no description of a recording is that long")
    try:
        fields = json.loads(read_member(tar, member.offset, member.size))
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


def _is_heldout(speaker: str | None, share: float) -> bool:
    digest = hashlib.sha256((speaker or "").encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64
