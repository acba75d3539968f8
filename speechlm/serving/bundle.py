"""Everything that one spoken chatbot needs, in one folder: `chat.json` names the parts and the hash of every file.

chat.json
lm/          Hugging Face folder of the language model, with tokenizer and vocab.json
tokenizer/   speech to tokens       |
decoder/     tokens to mel          | stages, see `parts`
vocoder/     mel to sound           |
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from speechlm.engines.base import Sampling
from speechlm.files import write_text_atomic
from speechlm.nn.hf_export import whole_folder

FORMAT = 1
PARTS = ("lm", "tokenizer", "decoder", "vocoder")


@dataclass(frozen=True)
class Manifest:
    """What `chat.json` says beside the hashes.

    Args:
        name: of the model, as clients call it.
        template: name of the chat template.
        text_block: ids of text in a block of a reply; null is the template's own.
        speech_block: ids of speech in a block, likewise.
        instructions: what a conversation begins with; "" leaves it to the template.
        sampling: of replies.
        first_tokens: speech tokens of a reply's first chunk; null is one block of the decoder.
        chunk_tokens: of each further chunk, likewise.
        max_length: positions of a conversation.
    """

    name: str
    template: str = "plain"
    text_block: int | None = None
    speech_block: int | None = None
    instructions: str = ""
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.2, top_p=0.8))
    first_tokens: int | None = None
    chunk_tokens: int | None = None
    max_length: int = 4096


def write_bundle(out: str | Path, manifest: Manifest, writers: dict[str, Callable[[Path], Any]]) -> None:
    """Write the folder, whole or not at all.

    Args:
        out: must not exist, or be empty.
        manifest: see `Manifest`.
        writers: for each of `PARTS`, writes its folder.
    """
    assert set(writers) == set(PARTS)
    with whole_folder(out) as folder:
        for part, write in writers.items():
            write(folder / part)
        write_text_atomic(folder / "chat.json", manifest_json(manifest, folder))


def manifest_json(manifest: Manifest, folder: Path) -> str:
    """The content of `chat.json` for the parts that lie in a folder."""
    hashes = {part: {name: _hash(folder / part / name) for name in _files(folder / part)} for part in PARTS}
    return json.dumps({"format": FORMAT, **asdict(manifest), "sha256": hashes}, indent=2, ensure_ascii=False) + "\n"


def read_manifest(folder: str | Path, verify: bool = True) -> Manifest:
    """What a bundle says of itself.

    Args:
        folder: of the bundle.
        verify: compute the hashes again; seconds per gigabyte.

    Raises:
        ValueError: it is no bundle, or a file is missing, or too many, or another than when it was written.
    """
    path = Path(folder) / "chat.json"
    if not path.is_file():
        raise ValueError(
            f"{folder} is no model to talk to: it has no chat.json; `python -m speechlm.chat bundle` makes one"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version, hashes = content.pop("format"), content.pop("sha256")
        if version != FORMAT or set(hashes) != set(PARTS):
            raise ValueError(f"it is of format {version!r} with the parts {sorted(hashes)}")
        manifest = Manifest(**{**content, "sampling": Sampling(**content["sampling"])})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no manifest of format {FORMAT}: {error}") from error
    _require_files(Path(folder), hashes, verify)
    return manifest


def copy_folder(source: str | Path) -> Callable[[Path], Any]:
    """A writer that copies a folder as it is."""
    return lambda target: shutil.copytree(source, target)


def _require_files(folder: Path, hashes: dict[str, dict[str, str]], verify: bool) -> None:
    for part, known in hashes.items():
        there = set(_files(folder / part))
        if there != set(known):
            odd = sorted(there ^ set(known))
            raise ValueError(f"{folder / part} has not the files that chat.json lists; missing or too many: {odd[:5]}")
        changed = [name for name in sorted(known) if verify and _hash(folder / part / name) != known[name]]
        if changed:
            raise ValueError(f"{folder / part / changed[0]} is not the file that was bundled: its hash differs")


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
