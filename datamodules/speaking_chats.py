"""Text chats to spoken dialogues: both sides through text-to-token, each in a voice of its own.

What comes out has the form of the paper's SpeechDialog-90K (arXiv 2411.17607): turns of both sides with words and speech tokens,
`datamodules.dialogues` has the lines. A dialogue is kept up to the first turn that could not be spoken.

    <out>/<source>/00003-00012.jsonl    dialogues [12, 13) * shard_documents of file 3
"""

import itertools
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.chats import ChatSettings, read_chats, sayable_chat
from datamodules.dialogues import Dialogue, Said, dialogue_files, dialogue_line
from datamodules.documents import Raw, Unusable
from datamodules.interleaving import InterleaveJob, one_of
from datamodules.speaking import Work
from speechlm.files import write_text_atomic
from speechlm.tokens.interleave import Segment


class ChatJob(InterleaveJob):
    """One source of chats on its way into one folder of spoken dialogues.

    A "document" is a dialogue here, and a span is a turn; of the settings, what says which words of a document are spoken has no
    effect.

    Args:
        chats: which chats are used.
        parts: as of `InterleaveJob`.
    """

    suffix = ".jsonl"
    unit = "turns"

    def __init__(self, chats: ChatSettings, *parts: Any) -> None:
        self.chats = chats
        super().__init__(*parts)

    def require_voices(self) -> None:
        """See `InterleaveJob.require_voices`."""
        both = (self.chats.user_voices, self.chats.reply_voices)
        if any(self.writer.voiced != bool(voices) for voices in both) or self.settings.voices:
            raise ValueError(
                f"the template has {'a' if self.writer.voiced else 'no'} {{voice}}; chat.user_voices is {both[0]}, "
                f"chat.reply_voices {both[1]}, and interleave.voices, which is not for chats, {self.settings.voices}"
            )

    def find_files(self) -> list[Path]:
        """See `InterleaveJob.find_files`."""
        return dialogue_files(self.source.paths)

    def plan_of(self) -> dict[str, Any]:
        """What the folder is made with, besides what every job says."""
        return {"chats": asdict(self.chats)}

    def documents_of(self, file: Path) -> Iterator[Raw]:
        """Chats of a file, as much of each as can be said; why there is nothing is in `problem`."""
        for chat in read_chats(file, self.source.id_field):
            sayable = sayable_chat(chat, self.chats)
            turns: list[tuple[str, Any]] = list(sayable.turns)
            text = "\n".join(text for _, text in turns)
            raw = Raw(sayable.id, text, parts=turns, problem=sayable.problem)
            raw.left_out, raw.shortened = sayable.left_out, sayable.shortened
            yield raw

    def spans_of(self, raw: Raw) -> list[Segment]:
        """Every turn is a span, with the line's end behind it as text."""
        made: list[Segment] = []
        begin = 0
        for _, text in raw.parts:
            made.append(Segment("speech", begin, begin + len(text)))
            begin += len(text) + 1
            made.append(Segment("text", begin - 1, begin))
        return made[:-1]

    def prompt(self, raw: Raw, segment: Segment) -> tuple[np.ndarray, int]:
        """See `InterleaveJob.prompt`; each side has its own voice."""
        turn = self.spans_of(raw).index(segment) // 2
        return self.asked(raw.text[segment.start : segment.end], self._voice(raw.id, raw.parts[turn][0]))

    def assembled(self, work: Work) -> Dialogue:
        """The dialogue, up to the first turn that was not spoken.

        Raises:
            Unusable: not one question and reply were.
        """
        spoken = [work.speech.get(index) for index in range(0, len(work.segments), 2)]
        whole = list(itertools.takewhile(lambda pair: pair[1] is not None, zip(work.raw.parts, spoken, strict=True)))
        whole = whole[: len(whole) // 2 * 2]
        if not whole:
            raise Unusable("no exchange was spoken")
        turns = [
            Said(role, text, codes, self._voice(work.raw.id, role))  # type: ignore[arg-type]
            for (role, text), codes in whole
        ]
        work.raw.left_out["from a turn on that was not spoken"] += len(spoken) - len(turns)
        about = {"source": self.folder.name, "made_with": self.seal, "turns_cut": len(spoken) - len(turns)}
        return Dialogue(work.raw.id, turns, about)

    def units_of(self, raw: Raw) -> int:
        """See `Job.units_of`: turns."""
        return len(raw.parts)

    def units_in(self, document: Any) -> int:
        """See `Job.units_in`: turns."""
        return len(document.turns)

    def text_ids(self, documents: list[Any]) -> int:
        """See `InterleaveJob.text_ids`; every turn is spoken."""
        return 0

    def write_documents(self, path: Path, documents: list[Any]) -> None:
        """See `InterleaveJob.write_documents`."""
        write_text_atomic(path, "".join(dialogue_line(one) + "\n" for one in documents))

    def _voice(self, dialogue: str, role: str) -> str:
        voices = self.chats.user_voices if role == "user" else self.chats.reply_voices
        return one_of(voices, f"{dialogue}/{role}", self.settings.seed)
