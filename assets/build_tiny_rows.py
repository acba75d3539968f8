"""Builds `assets/tiny-rows` and `assets/tiny-lm`: what the smallest language models are trained on, and their shapes.

    python assets/build_tiny_rows.py assets

Text is that of this repository's own pages. Speech is made up, a code for each letter, so that a model can learn that the two say
the same; nobody ever spoke it.
"""

import argparse
import contextlib
import json
import re
import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
from transformers import GlmConfig, PreTrainedConfig, Qwen2Config

from datamodules.dialogues import Dialogue, Said, dialogue_line
from speechlm import pack
from speechlm.text_tokenizer import TextTokenizer
from speechlm.tokens.filling import RowFiller
from speechlm.tokens.rows import index_of, row_writer, write_index
from speechlm.tokens.templates import Writer
from speechlm.tokens.vocab import Vocab

ROOT = Path(__file__).resolve().parents[1]
TOKENIZER = ROOT / "assets" / "whisper-nano-en"
NUM_CODES = 64
ROW_LEN = 128
SPOKEN_WORDS = 5  # every other run of so many words is spoken
HELDOUT_EVERY = 8  # paragraphs
SHAPE = {
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": ROW_LEN,
    "bos_token_id": None,
    "eos_token_id": 507,
    "pad_token_id": None,
}
MODELS: dict[str, PreTrainedConfig] = {
    "qwen2": Qwen2Config(**SHAPE, tie_word_embeddings=True),
    "glm": GlmConfig(**SHAPE, tie_word_embeddings=False),
    "glm_voice": GlmConfig(**{**SHAPE, "vocab_size": 640}, tie_word_embeddings=False),  # has rows for speech
}


def paragraphs() -> list[str]:
    """Prose of the repository's pages."""
    pages = [ROOT / "README.md", ROOT / "docs" / "speech_tokenizer.md", ROOT / "docs" / "data.md"]
    texts = [re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL) for page in pages]
    blocks = [re.sub(r"\s+", " ", block).strip() for text in texts for block in text.split("\n\n")]
    return [block for block in blocks if len(block) > 60 and block[0].isalpha()]


def spoken(words: list[str]) -> list[int]:
    """Codes of words."""
    return [sum(map(ord, letter)) * 7 % NUM_CODES for letter in "".join(words)]


def interleaved(text: str) -> list[tuple[str, object]]:
    """Runs of words, written and spoken in turns."""
    words = text.split()
    runs = [words[i : i + SPOKEN_WORDS] for i in range(0, len(words), SPOKEN_WORDS)]
    return [("speech", spoken(run)) if i % 2 else ("text", " ".join(run)) for i, run in enumerate(runs)]


def write_corpora(folder: Path) -> dict[str, str]:
    """Text and interleaved documents, for training and held out; their files by name."""
    found = {}
    for part in ("train", "heldout"):
        chosen = [t for i, t in enumerate(paragraphs()) if (i % HELDOUT_EVERY == 0) == (part == "heldout")]
        for kind in ("text", "interleaved"):
            path = folder / f"{kind}_{part}.jsonl"
            lines = [
                {"id": str(i), **({"text": t} if kind == "text" else {"parts": interleaved(t)})}
                for i, t in enumerate(chosen)
            ]
            path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
            found[path.stem] = str(path)
    return found


def write_pairs(out: Path) -> None:
    """Rows of texts and their speech, as `speechlm.pack` makes them of cuts with tokens; here there are no cuts."""
    vocab, tokenizer = Vocab.load(out / "vocab.json"), TextTokenizer(TOKENIZER)
    writer = Writer(
        "tts", None, vocab, lambda text: tokenizer.encode([text])[0].tolist(), tokenizer.specials, tokenizer.end
    )
    for part in ("train", "heldout"):
        words = " ".join(
            t for i, t in enumerate(paragraphs()) if (i % HELDOUT_EVERY == 0) == (part == "heldout")
        ).split()
        texts = [" ".join(words[i : i + SPOKEN_WORDS]) for i in range(0, len(words), SPOKEN_WORDS)]
        path, about = out / f"tts_{part}" / "00000.rows", {"source": f"tts_{part}", "kind": "tts", "language": "en"}
        with row_writer(path, ROW_LEN, vocab.hash, len(vocab), about) as rows:
            filler = RowFiller(rows, vocab, 2**20)
            for text, ids in zip(texts, tokenizer.encode(texts), strict=True):
                filler.add(writer.write(ids, np.array(spoken(text.split()))))
            about["counts"] = {"documents_in": len(texts), **asdict(filler.finish()), "skipped": {}}
        write_index(path.parent, index_of([path]))


def write_chats(out: Path) -> None:
    """Rows of dialogues, the words of the pages in turns; a code for each letter, said by both sides."""
    for part in ("train", "heldout"):
        words = " ".join(
            t for i, t in enumerate(paragraphs()) if (i % HELDOUT_EVERY == 0) == (part == "heldout")
        ).split()
        turns = [words[i : i + 3] for i in range(0, len(words), 3)][:160]
        said = [
            Said(("user", "assistant")[n % 2], " ".join(turn), np.array(spoken(turn)), "a")
            for n, turn in enumerate(turns)
        ]
        dialogues = [Dialogue(f"{part}-{n}", said[n : n + 2]) for n in range(0, len(said), 2)]
        name = f"chat_{part}"
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            Path(f"{name}.jsonl").write_text("".join(dialogue_line(one) + "\n" for one in dialogues), encoding="utf-8")
            source = {
                "kind": "chat", "paths": [f"{name}.jsonl"], "language": "en", "chat": {"text_block": 4, "speech_block": 4}
            }  # fmt: skip
            arguments = {
                "sources": json.dumps({name: source}),
                "packing.row_len": ROW_LEN,
                "packing.max_skip_rate": 1.0,
            }
            arguments |= {"text_tokenizer": TOKENIZER, "vocab": out / "vocab.json", "out": out}
            pack.main([word for key, value in arguments.items() for word in (f"--{key}", str(value))])


def main() -> None:
    """Write rows and shapes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out.resolve()
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.chdir(folder),
    ):  # files name their sources as they were given
        sources = {
            name: {"kind": name.split("_")[0], "paths": [path], "language": "en"}
            for name, path in write_corpora(Path()).items()
        }
        arguments = {"sources": json.dumps(sources), "packing.row_len": ROW_LEN, "packing.window_tokens": 2**20}
        arguments |= {"text_tokenizer": TOKENIZER, "num_speech": NUM_CODES, "out": out / "tiny-rows"}
        pack.main([word for name, value in arguments.items() for word in (f"--{name}", str(value))])
    write_pairs(out / "tiny-rows")
    write_chats(out / "tiny-rows")
    for name, config in MODELS.items():
        config.save_pretrained(out / "tiny-lm" / name)


if __name__ == "__main__":
    main()
