"""Common Voice (https://commonvoice.mozilla.org), read sentences in many languages, as cut manifests.

Read row by row: Lhotse's recipe holds all rows of a table in memory and stops at tables of other releases, whose columns differ.
Where it does not, the cuts are the same (`tests/test_corpora.py`).
"""

from collections.abc import Iterator
from pathlib import Path

from datamodules.recipes.layout import require
from datamodules.recipes.part_writer import PartWriter
from datamodules.recipes.utterances import Utterance, write_utterances

COLUMNS = ("client_id", "path", "sentence")
PARTS = ["train", "dev", "test"]
SOURCE = "commonvoice.mozilla.org/datasets"


def prepare(
    corpus: Path,
    out: Path,
    languages: list[str] | None = None,
    parts: list[str] = PARTS,
    jobs: int = 4,
    seed: int = 0,
) -> None:
    """Write `<locale>/<part>.jsonl.gz` for every locale and part, such as zh-CN/train.jsonl.gz.

    Args:
        corpus: the folder of a release, such as cv-corpus-17.0-2024-03-15, or of one locale in it.
        out: where the manifests go; inside or above the corpus they name its files relatively, so that both can move together.
        languages: locales such as [en, zh-CN]; all that are there by default.
        parts: tables such as train, dev, test, validated, other; a recording of train is in validated too.
        jobs: threads that read the files' headers.
        seed: of the order.

    Raises:
        ValueError: the corpus is not there, or lacks a locale or a table that was asked for.
    """
    if not languages and (corpus / "clips").is_dir():
        corpus, languages = corpus.absolute().parent, [corpus.absolute().name]
    if not languages:
        require(corpus, ("*/clips",), "Common Voice", SOURCE)
    locales = languages or sorted(path.parent.name for path in corpus.glob("*/clips"))
    for locale in locales:
        require(corpus, (f"{locale}/clips", *(f"{locale}/{part}.tsv" for part in parts)), "Common Voice", SOURCE)
    for locale in locales:
        for part in parts:
            path = out / locale / f"{part}.jsonl.gz"
            with PartWriter(path, f"{seed} {locale} {part}", f"{locale} {part}") as writer:
                write_utterances(_utterances(corpus / locale, part, locale), writer, jobs)


def language_of(locale: str) -> str:
    """The code that Whisper knows a locale's language by: zh-CN and zh-TW are zh, Hong Kong's Cantonese is yue."""
    return "yue" if locale == "zh-HK" else locale.partition("-")[0]


def sentence_of(text: str) -> str:
    """A sentence without the quotation marks that some tables put around it, and double inside of it."""
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] == '"' and '"' not in text[1:-1].replace('""', ""):
        text = text[1:-1].replace('""', '"').strip()
    return text


def _utterances(folder: Path, part: str, locale: str) -> Iterator[Utterance]:
    table = folder / f"{part}.tsv"
    with open(table, encoding="utf-8", newline="\n") as file:
        names = file.readline().rstrip("\r\n").split("\t")
        missing = [name for name in COLUMNS if name not in names]
        if missing:
            raise ValueError(f"{table} has no column {', '.join(missing)}; its first line has {', '.join(names)}")
        for line in file:
            row = dict.fromkeys(names, "") | dict(zip(names, line.rstrip("\r\n").split("\t"), strict=False))
            path = folder / "clips" / (row["path"] or "no name")
            path = path if path.suffix else path.with_suffix(".mp3")  # the first releases leave it out
            text, language = sentence_of(row["sentence"]), language_of(locale)
            yield Utterance(path.stem, path, text, language, row["client_id"], row.get("gender"))
