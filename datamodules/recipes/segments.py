"""Corpora of long recordings, each with a list of what is said when: one cut a segment, the recordings left as they are."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from lhotse import MonoCut, Recording, SupervisionSegment

from datamodules.recipes.part_writer import PartWriter


@contextmanager
def open_parts(out: Path, names: Mapping[str, str], seed: int) -> Iterator[dict[str, PartWriter]]:
    """Writers by subset; `names` has the manifest of each. All are written when the block ends, or none is."""
    with ExitStack() as stack:
        yield {s: stack.enter_context(PartWriter(out / f"{n}.jsonl.gz", f"{seed} {n}")) for s, n in names.items()}


class Segments:
    """Cuts of one recording after another into the parts they belong to.

    Args:
        language: code of all of them.
        text_of: a transcript as it is to be trained on, or "" and the reason why it is not.
    """

    def __init__(self, language: str, text_of: Callable[[str], tuple[str, str]]) -> None:
        self.language, self.text_of = language, text_of

    def write(self, recording: Recording, segments: list[SupervisionSegment], part: PartWriter) -> None:
        """Add the segments of a recording to a part."""
        part.tally.found += len(segments)
        if segments and not Path(recording.sources[0].source).is_file():
            part.leave_out("no audio file", len(segments))
            return
        for segment in segments:
            text, reason = self.text_of(segment.text or "")
            if not reason and min(segment.end, recording.duration) <= max(0.0, segment.start):
                reason = "outside of its recording"
            if reason:
                part.leave_out(reason)
            else:
                part.add(self._cut(recording, segment, text))

    def _cut(self, recording: Recording, segment: SupervisionSegment, text: str) -> MonoCut:
        start = max(0.0, segment.start)
        duration = round(min(segment.end, recording.duration) - start, ndigits=8)
        said = SupervisionSegment(
            id=segment.id,
            recording_id=recording.id,
            start=0.0,
            duration=duration,
            text=text,
            language=self.language,
            speaker=segment.speaker if segment.speaker not in (None, "", "N/A") else None,
        )
        return MonoCut(segment.id, start, duration, 0, supervisions=[said], recording=recording)
