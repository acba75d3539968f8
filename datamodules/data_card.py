"""What a folder of data is, for the people who find it later: `card.json` and a README.md that says the same in words."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from speechlm.files import write_text_atomic

CARD, PAGE = "card.json", "README.md"
MARK = "<!-- written by the data verbs; made anew by each of them -->"
#: As the publishers state it; what they write there is what counts.
LICENCES = {
    "librispeech": "CC-BY-4.0 (openslr.org/12)",
    "libritts": "CC-BY-4.0 (openslr.org/60, openslr.org/141)",
    "vctk": "CC-BY-4.0 (datashare.ed.ac.uk, VCTK 0.92)",
    "aishell": "Apache-2.0 (openslr.org/33)",
    "gigaspeech": "Apache-2.0 for the metadata; audio by its own terms, research only (github.com/SpeechColab/GigaSpeech)",
    "wenetspeech": "CC-BY-4.0, non-commercial research by its terms (wenet.org.cn/WenetSpeech)",
    "mls": "CC-BY-4.0 (openslr.org/94)",
    "commonvoice": "CC0-1.0 (commonvoice.mozilla.org)",
    "emilia": "CC-BY-NC-4.0, its YODAS part CC-BY-4.0 (amphion/Emilia-Dataset)",
}


@dataclass(frozen=True)
class DataCard:
    """Of one folder.

    Args:
        title: what it is.
        made_by: the verb.
        made_of: files or folders it was made of.
        licence: of what came in; taken from the cards of `made_of` where empty.
        languages: codes.
        counts: how much there is, by a name with its unit.
        skipped: how much was left out, by reason.
        hashes: of tokenizer, vocabulary, model: what else must be the same for the data to mean the same.
    """

    title: str
    made_by: str
    made_of: tuple[str, ...] = ()
    licence: str = ""
    languages: tuple[str, ...] = ()
    counts: Mapping[str, float] = field(default_factory=dict)
    skipped: Mapping[str, int] = field(default_factory=dict)
    hashes: Mapping[str, str] = field(default_factory=dict)

    def write(self, folder: str | Path) -> None:
        """Both files, atomically; a README.md of somebody else stays as it is."""
        licence = self.licence or "; ".join(sorted(licences_of(self.made_of)))
        card = asdict(self) | {"licence": licence, "skipped": dict(self.skipped)}  # asdict takes a Counter apart
        page = Path(folder) / PAGE
        write_text_atomic(Path(folder) / CARD, json.dumps(card, indent=2, ensure_ascii=False) + "\n")
        if not page.exists() or MARK in page.read_text(encoding="utf-8"):
            write_text_atomic(page, page_of(card))


def licences_of(sources: Iterable[str]) -> set[str]:
    """Licences that the cards in or above the sources state; the sources themselves where there is no card."""
    found = set()
    for source in sources:
        path = Path(source)
        near = [folder / CARD for folder in (path, path.parent) if (folder / CARD).is_file()]
        licence = json.loads(near[0].read_text(encoding="utf-8")).get("licence", "") if near else ""
        found.add(str(licence) or f"unknown, of {source}")
    return found


def page_of(card: Mapping[str, Any]) -> str:
    """The card in words."""
    lines = [f"# {card['title']}", "", MARK, "", f"Made by `{card['made_by']}`.", ""]
    rows = {
        "of": ", ".join(f"`{source}`" for source in card["made_of"]),
        "licence": card["licence"] or "unknown",
        "languages": ", ".join(card["languages"]) or "not stated",
        **{name.replace("_", " "): _shown(value) for name, value in card["counts"].items()},
        **{f"left out: {reason}": _shown(count) for reason, count in card["skipped"].items()},
        **{name.replace("_", " "): f"`{value}`" for name, value in card["hashes"].items()},
    }
    return "\n".join(
        [*lines, "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items() if value), ""]
    )


def _shown(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) or value == int(value) else f"{value:,.2f}"
