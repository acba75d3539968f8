"""Corpora to rows: one folder for each source, made file by file by any number of processes, each file whole or not at all."""

import itertools
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

from datamodules.chat_rows import ChatForm, ChatScribe
from datamodules.dialogues import dialogue_files
from datamodules.document_rows import DocumentScribe, Scribe
from datamodules.documents import Unusable, files_of
from datamodules.interleaved import Making, read_making
from datamodules.sealed import begin, seal_of
from datamodules.skip_limit import SkipLimit
from datamodules.token_folder import TokenFolder
from speechlm.conservation import Account
from speechlm.text_tokenizer import TextTokenizer
from speechlm.tokens.filling import RowFiller
from speechlm.tokens.rows import SUFFIX, RowFile, index_of, row_writer, write_index
from speechlm.tokens.templates import TEMPLATES, Template, Written
from speechlm.tokens.vocab import Vocab

log = logging.getLogger(__name__)

SourceKind = Literal["text", "speech", "asr", "tts", "interleaved", "chat"]
SCHEMA = 1
PLAN = "pack.json"
ENCODED_AT_ONCE = 256  # documents
EXAMPLES = 20  # documents not used that are named in a file's header


@dataclass(frozen=True)
class PackSource:
    """A corpus of one kind.

    Args:
        paths: files, or folders that are searched through: for text .jsonl, .jsonl.gz, .jsonl.zst and .parquet; for speech, asr
            and tts what `speechlm.tokenize` wrote, or manifests of cuts with `speech_tokens`; for interleaved what
            `datamodules.interleaved` wrote, or .jsonl; for chat .jsonl of `datamodules.dialogues`.
        kind: text, speech, asr, tts, interleaved or chat.
        template: how a document is written; None is the kind's own.
        boundaries: put control tokens around the speech of interleaved documents.
        language: code such as "en".
        text_field: name of the text in .jsonl and .parquet.
        id_field: name of the document's id there.
        token_rate_hz: speech tokens per second, where the files themselves do not say.
        chat: how dialogues are written.
        text_tokenizer: of interleaved documents whose text another tokenizer made than the rows': its name or folder. They are
            read with it and encoded anew; "" where it is the same.
    """

    paths: list[str]
    kind: SourceKind
    template: Template | None = None
    boundaries: bool = True
    language: str = ""
    text_field: str = "text"
    id_field: str = "id"
    token_rate_hz: float | None = None
    chat: ChatForm = ChatForm()  # noqa: RUF009 - frozen
    text_tokenizer: str = ""

    def files(self) -> list[Path]:
        """All of its files, in order.

        Raises:
            FileNotFoundError: a path is not there.
            ValueError: a folder has no file of the kind.
        """
        return dialogue_files(self.paths) if self.kind == "chat" else files_of(self.paths, self.kind)

    @cached_property
    def reader(self) -> TextTokenizer | None:
        """What reads text that is there as ids of another tokenizer than the rows'.

        Raises:
            ValueError: the source is of a kind that has no ids of text, or names no tokenizer.
        """
        if not self.text_tokenizer:
            return None
        if self.kind != "interleaved":
            raise ValueError(f"text_tokenizer is for interleaved documents, this source is of kind {self.kind}")
        return TextTokenizer(self.text_tokenizer)


@dataclass(frozen=True)
class PackSettings:
    """How rows are made.

    Args:
        row_len: ids of a row.
        window_tokens: ids that a process holds to choose from, 4 bytes each.
        unit_mb: megabytes of a source's files that make one file of rows: what is lost when a process is killed.
        max_skip_rate: share of documents that can not be used above which a process stops, once `min_skip_count` are.
        min_skip_count: see `max_skip_rate`.

    Raises:
        ValueError: a number is out of range.
    """

    row_len: int = 8192
    window_tokens: int = 2**25
    unit_mb: float = 1024.0
    max_skip_rate: float = 0.01
    min_skip_count: int = 100

    def __post_init__(self) -> None:
        if self.row_len < 2 or self.window_tokens < self.row_len or self.unit_mb <= 0 or self.min_skip_count < 1:
            raise ValueError(
                f"row_len >= 2, window_tokens >= row_len, unit_mb > 0 and min_skip_count >= 1 must hold, got {self}"
            )
        if not 0 <= self.max_skip_rate <= 1:
            raise ValueError(f"max_skip_rate is a share from 0 to 1, got {self.max_skip_rate}")


class Watcher(Protocol):
    """Who wants to know how far it is."""

    def made(self, documents: int, ids: int) -> None:
        """So many more documents were read, of so many ids."""
        ...

    def read(self, num_bytes: int) -> None:
        """So many more bytes of the corpus are done with."""
        ...


@dataclass
class PackJob:
    """One source on its way into one folder of rows.

    Args:
        name: of the source.
        source: the corpus.
        settings: how rows are made.
        vocab: of the rows.
        tokenizer: of text.
        folder: where the rows go.

    Raises:
        FileNotFoundError: a path of the source is not there.
        ValueError: files, template or tokens do not fit, or the folder was begun with something else.
    """

    name: str
    source: PackSource
    settings: PackSettings
    vocab: Vocab
    tokenizer: TextTokenizer
    folder: Path
    units: list[list[Path]] = field(init=False)
    seal: str = field(init=False)

    def __post_init__(self) -> None:
        files = self.source.files()
        self.token_rate_hz = token_rate(self.source, files, self.vocab)
        self.units = list(group(files, self.settings.unit_mb * 1e6))
        self.scribe = self._scribe()
        plan = self._plan(files)
        begin(self.folder / PLAN, plan)
        self.seal = seal_of(plan)

    def path(self, unit: int) -> Path:
        """File of rows of a unit."""
        return self.folder / f"{unit:05d}{SUFFIX}"

    def is_done(self, unit: int) -> bool:
        """Whether a unit's rows are there, whole and made as they would be made now."""
        try:
            return RowFile(self.path(unit)).header.get("made_with") == self.seal
        except (FileNotFoundError, ValueError):
            return False

    def make(self, unit: int, watcher: Watcher) -> None:
        """Write the rows of a unit.

        Raises:
            RuntimeError: too many documents can not be used.
            ValueError: a file is cut short or damaged.
        """
        skips = Skipped(self.settings, self.name)
        about: dict[str, Any] = {
            "source": self.name,
            "kind": self.source.kind,
            "language": self.source.language,
            "token_rate_hz": self.token_rate_hz,
            "made_with": self.seal,
            "made_of": [str(file) for file in self.units[unit]],
        }
        with row_writer(self.path(unit), self.settings.row_len, self.vocab.hash, len(self.vocab), about) as writer:
            filler = RowFiller(writer, self.vocab, self.settings.window_tokens)
            for file in self.units[unit]:
                for written in self._written(file, skips):
                    filler.add(written)
                    watcher.made(1, len(written.ids))
                watcher.read(file.stat().st_size)
            counts = {"documents_in": skips.seen, **asdict(filler.finish()), "skipped": dict(skips.reasons)}
            for account in accounts(counts):
                account.require(str(self.path(unit)))
            about |= {"counts": counts, "skipped_examples": skips.examples}

    def finish(self) -> dict[str, Any] | None:
        """The index, written where all units are there; None where some are not.

        Raises:
            ValueError: there is not one row.
        """
        if not all(self.is_done(unit) for unit in range(len(self.units))):
            return None
        index = index_of([self.path(unit) for unit in range(len(self.units))])
        for account in accounts(index["counts"]):
            account.require(str(self.folder))
        if not sum(entry["rows"] for entry in index["files"]):
            raise ValueError(f"not one document of {self.name} could be used: {index['counts']}")
        write_index(self.folder, index)
        return index

    def _plan(self, files: list[Path]) -> dict[str, Any]:
        source = asdict(self.source)
        if self.source.kind == "chat":
            del source["template"], source["boundaries"]
        else:
            source["template"] = asdict(self.source.template or TEMPLATES[self.source.kind])
            del source["chat"]
        if not self.source.text_tokenizer:
            del source["text_tokenizer"]
        settings = {name: value for name, value in asdict(self.settings).items() if "skip" not in name}
        return {
            "schema": SCHEMA,
            "source": source,
            "settings": settings,
            "vocab_hash": self.vocab.hash,
            "text_tokenizer": self.tokenizer.fingerprint,
            "files": [[str(file), file.stat().st_size] for file in files],
        }

    def _scribe(self) -> Scribe:
        source, row_len = self.source, self.settings.row_len
        if source.kind == "chat":
            return ChatScribe(source.chat, self.vocab, self.tokenizer, row_len)
        fields = (source.text_field, source.id_field)
        return DocumentScribe(
            source.kind,
            source.template,
            source.boundaries,
            fields,
            self.vocab,
            self.tokenizer,
            row_len,
            source.reader,
        )

    def _written(self, file: Path, skips: "Skipped") -> Iterator[Written]:
        for batch in _batched(skips.counting(self.scribe.read(file)), ENCODED_AT_ONCE):
            for document, texts in zip(batch, self.scribe.encoded(batch), strict=True):
                try:
                    yield self.scribe.write(document, texts)
                except Unusable as error:
                    skips.add(document.id, error.reason, str(error))


def accounts(counts: Mapping[str, Any]) -> list[Account]:
    """Of documents and of ids, out of the counts of a file or a folder of rows."""
    words = ("in", f"out ({counts['documents_cut']} cut)", "skipped")
    return [
        Account("documents", counts["documents_in"], counts["documents"], counts["skipped"], words),
        Account("ids", counts["ids_in"], counts["ids_out"]),
    ]


class Skipped:
    """Documents that could not be used, by reason.

    Args:
        settings: how many are too many.
        name: of the source.
    """

    def __init__(self, settings: PackSettings, name: str) -> None:
        self.settings, self.name = settings, name
        self.seen = 0
        self.reasons: Counter[str] = Counter()
        self.examples: list[list[str]] = []

    def counting(self, documents: Iterable[Any]) -> Iterator[Any]:
        """The same documents, counted."""
        for document in documents:
            self.seen += 1
            yield document

    def add(self, document: str, reason: str, detail: str) -> None:
        """Count a document.

        Raises:
            RuntimeError: it was one too many.
        """
        self.reasons[reason] += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append([document[:200], reason, detail[:200]])
            log.warning("%s: %s is not used (%s: %s)", self.name, document[:200], reason, detail[:200])
        limit = SkipLimit(self.settings.max_skip_rate, self.settings.min_skip_count, "`packing.max_skip_rate`")
        last = f"{document[:200]} ({reason}: {detail[:200]})"
        limit.require(self.reasons, self.seen, f"documents of {self.name}", last)


def group(files: Sequence[Path], num_bytes: float) -> Iterator[list[Path]]:
    """Neighbouring files in groups of at least so many bytes, the last one of fewer."""
    unit: list[Path] = []
    size = 0
    for file in files:
        unit.append(file)
        size += file.stat().st_size
        if size >= num_bytes:
            yield unit
            unit, size = [], 0
    if unit:
        yield unit


def token_rate(source: PackSource, files: list[Path], vocab: Vocab) -> float | None:
    """Speech tokens per second of a source, whose tokens must be those of the vocabulary; None where nobody says.

    Raises:
        ValueError: the tokens are of other tokenizers, or their rates differ.
    """
    rates, reader = {source.token_rate_hz} - {None}, source.reader
    for folder in {f.path: f for f in map(TokenFolder.find, {Path(path) for path in source.paths}) if f}.values():
        folder.require(vocab)
        rates.add(folder.header.clock.token_rate_hz)
    for file in files:
        if file.name.endswith(".safetensors"):
            making = read_making(file)
            _require(file, reader.fingerprint if reader else vocab.text_tokenizer, vocab.speech_tokenizer, making)
            rates.add(making.token_rate_hz)
    if len(rates) > 1:
        raise ValueError(
            f"the speech tokens of {source.paths} have different rates: {sorted(map(str, rates))} per second"
        )
    return next(iter(rates), None)


def _require(file: Path, text_tokenizer: str, speech_tokenizer: str, making: Making) -> None:
    pairs = [
        ("text", making.text_tokenizer, text_tokenizer, "name the one that made it as the source's `text_tokenizer`"),
        ("speech", making.speech_tokenizer, speech_tokenizer, "make it again"),
    ]
    for what, made, wanted, advice in pairs:
        if made and wanted and made != wanted:
            raise ValueError(f"{file} was made with the {what} tokenizer {made}, expected {wanted}; {advice}")


def _batched(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
