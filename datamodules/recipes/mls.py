"""Multilingual LibriSpeech (https://www.openslr.org/94) in eight languages, FLAC or Opus, as cut manifests.

Read row by row: Lhotse's recipe holds the 10.8 million recordings of English in memory and decodes every Opus file with ffmpeg.
On FLAC the cuts are the same (`tests/test_corpora.py`).
"""

from collections.abc import Iterator
from pathlib import Path

from datamodules.recipes.layout import require
from datamodules.recipes.part_writer import PartWriter
from datamodules.recipes.utterances import Utterance, write_utterances

CODES = {
    "english": "en", "german": "de", "dutch": "nl", "french": "fr", "spanish": "es", "italian": "it", "portuguese": "pt",
    "polish": "pl",
}  # fmt: skip
PARTS = ("train", "dev", "test")
SOURCE = "openslr.org/94"


def prepare(corpus: Path, out: Path, languages: list[str] | None = None, jobs: int = 4, seed: int = 0) -> None:
    """Write `<language>/train.jsonl.gz`, `dev.jsonl.gz` and `test.jsonl.gz` for every language, such as de/train.jsonl.gz.

    Args:
        corpus: the folder of mls_german/ or mls_german_opus/ and so on, or one of these.
        out: where the manifests go; inside or above the corpus they name its files relatively, so that both can move together.
        languages: codes such as [de, pl]; all that are there by default.
        jobs: threads that read the files' headers.
        seed: of the order.

    Raises:
        ValueError: the corpus is not there, lacks a language that was asked for, or has one as FLAC and as Opus.
    """
    folders = _folders(corpus)
    missing = [code for code in languages or [] if code not in folders]
    if missing:
        raise ValueError(f"there is no {', '.join(missing)} in {corpus}; it has {', '.join(sorted(folders))}")
    chosen = {code: folder for code, folder in folders.items() if not languages or code in languages}
    for folder in chosen.values():
        wanted = ("metainfo.txt", *(f"{part}/{name}" for part in PARTS for name in ("audio", "transcripts.txt")))
        require(folder, wanted, "a language of MLS", SOURCE)
    for code, folder in chosen.items():
        genders = _genders(folder / "metainfo.txt")
        suffix = ".opus" if folder.name.endswith("_opus") else ".flac"
        for part in PARTS:
            path = out / code / f"{part}.jsonl.gz"
            with PartWriter(path, f"{seed} {code} {part}", f"{code} {part}") as writer:
                write_utterances(_utterances(folder / part, suffix, code, genders), writer, jobs)


def _folders(corpus: Path) -> dict[str, Path]:
    """Folder of every language, by its code."""
    folders: dict[str, Path] = {}
    for folder in [corpus] if corpus.name.startswith("mls_") else sorted(corpus.glob("mls_*")):
        code = CODES.get(folder.name.split("_")[1])
        if code is None or "_lm_" in folder.name or not folder.is_dir():
            continue
        if code in folders:
            raise ValueError(f"{folders[code]} and {folder} are the same language; name one of them as the corpus")
        folders[code] = folder
    if not folders:
        require(corpus, ("mls_*",), "MLS", SOURCE)
        raise ValueError(f"{corpus} has no mls_<language> of {', '.join(CODES)}; fetch one from {SOURCE}")
    return folders


def _genders(table: Path) -> dict[str, str]:
    """Speaker -> M or F; the first line has the columns' names."""
    rows = [line.split("|") for line in table.read_text(encoding="utf-8").splitlines()[1:]]
    return {row[0].strip(): row[1].strip() for row in rows if len(row) > 1}


def _utterances(part: Path, suffix: str, language: str, genders: dict[str, str]) -> Iterator[Utterance]:
    """Rows `<speaker>_<book>_<number>\\t<text>`, whose file is audio/<speaker>/<book>/<name>."""
    table = part / "transcripts.txt"
    with open(table, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            name, tab, text = line.rstrip("\n").partition("\t")
            if not tab or name.count("_") != 2:
                raise ValueError(
                    f"{table}:{number}: expected <speaker>_<book>_<number>, a tab and a text, got {line!r}"
                )
            speaker, book, _ = name.split("_")
            path = part / "audio" / speaker / book / f"{name}{suffix}"
            yield Utterance(name, path, text, language, speaker, genders.get(speaker))
