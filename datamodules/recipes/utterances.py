"""Corpora with a file for each recording and tables of what is said in them: tables read row by row, files by their headers."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import soundfile
from lhotse import MonoCut, Recording, SupervisionSegment
from lhotse.audio import AudioSource

from datamodules.recipes.part_writer import PartWriter

AHEAD = 64  # rows per thread whose files are being looked at

A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True)
class Utterance:
    """What a table says of one recording."""

    name: str
    path: Path
    text: str
    language: str
    speaker: str | None = None
    gender: str | None = None


def write_utterances(utterances: Iterable[Utterance], part: PartWriter, jobs: int, transcribed: bool = True) -> None:
    """Cuts of all utterances whose files can be read; `jobs` threads read their headers."""
    for made in in_order(partial(cut_or_reason, transcribed=transcribed), utterances, jobs):
        part.tally.found += 1
        if isinstance(made, str):
            part.leave_out(made)
        else:
            part.add(made)


def cut_or_reason(utterance: Utterance, transcribed: bool = True) -> MonoCut | str:
    """The cut of an utterance, or the reason why there is none; without supervision where it need not be transcribed."""
    if transcribed and not utterance.text.strip():
        return "no transcript"
    if not utterance.path.is_file():
        return "no audio file"
    try:
        info = soundfile.info(str(utterance.path))
    except soundfile.LibsndfileError:
        return "unreadable audio"
    if info.frames == 0:
        return "empty audio"
    name, duration, channels = utterance.name, info.frames / info.samplerate, list(range(info.channels))
    source = AudioSource("file", channels, str(utterance.path))
    recording = Recording(name, [source], info.samplerate, info.frames, duration, channel_ids=channels)
    said = SupervisionSegment(
        id=name,
        recording_id=name,
        start=0.0,
        duration=duration,
        text=utterance.text.strip(),
        language=utterance.language,
        speaker=utterance.speaker or None,
        gender=utterance.gender or None,
    )
    return MonoCut(name, 0.0, duration, 0, supervisions=[said] if transcribed else [], recording=recording)


def in_order(work: Callable[[A], B], items: Iterable[A], jobs: int) -> Iterator[B]:
    """`map` on threads, in order, with few items ahead: neither what comes in nor what goes out is ever held as a whole."""
    if jobs <= 1:
        yield from map(work, items)
        return
    waiting: deque[Future[B]] = deque()
    with ThreadPoolExecutor(jobs) as pool:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) >= AHEAD * jobs:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
