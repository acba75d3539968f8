"""The text side of a Whisper checkpoint: transcripts to ids and back, with the prompt its decoder expects."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import AutoTokenizer, GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase
from whisper_normalizer.basic import BasicTextNormalizer
from whisper_normalizer.english import EnglishTextNormalizer

from speechlm.nn.losses import IGNORED


@dataclass
class WhisperText:
    """Text ids of one Whisper checkpoint.

    Attributes:
        tokenizer: its text tokenizer.
        start, eos: ids that open and end a transcript.
        no_timestamps: id that says no timestamps follow, None where the vocabulary has none.
        languages: language code -> id; empty for an English-only model.
        transcribe: id of the task, None for an English-only model.
        suppress: ids never to be emitted in a transcript.
        max_len: the longest sequence the decoder can hold.
        bare: prompt with the start id only, without language and task, as in the released GLM-4-Voice tokenizer.
    """

    tokenizer: PreTrainedTokenizerBase
    start: int
    eos: int
    no_timestamps: int | None
    languages: dict[str, int]
    transcribe: int | None
    suppress: list[int]
    max_len: int
    bare: bool = False

    @classmethod
    def from_pretrained(cls, folder: str, config: PretrainedConfig, bare: bool = False) -> "WhisperText":
        """From a Hugging Face name or folder."""
        generation = GenerationConfig.from_pretrained(folder)
        languages = getattr(generation, "lang_to_id", None) or {}
        tasks = getattr(generation, "task_to_id", None) or {}
        return cls(
            tokenizer=AutoTokenizer.from_pretrained(folder),
            start=config.decoder_start_token_id,
            eos=config.eos_token_id,
            no_timestamps=getattr(generation, "no_timestamps_token_id", None),
            languages={name.strip("<|>"): id_ for name, id_ in languages.items()},
            transcribe=tasks.get("transcribe"),
            suppress=[id_ for id_ in generation.suppress_tokens or [] if id_ != config.eos_token_id],
            max_len=config.max_target_positions,
            bare=bare,
        )

    def prompt(self, language: str = "") -> list[int]:
        """Ids that open a transcript in `language` (English where none is given).

        Raises:
            ValueError: the model is multilingual and does not know the language.
        """
        if self.bare:
            return [self.start]
        ids = [self.start]
        if self.languages:
            if (language or "en") not in self.languages:
                raise ValueError(
                    f"this Whisper does not know the language {language!r}; it knows {sorted(self.languages)}"
                )
            ids.append(self.languages[language or "en"])
        ids += [id_ for id_ in (self.transcribe, self.no_timestamps) if id_ is not None]
        return ids

    def encode(self, texts: list[str], languages: list[str] | None = None) -> tuple[Tensor, Tensor]:
        """Transcripts -> (B, L) decoder input ids and (B, L) labels, shifted by one; prompts and padding carry no loss.

        A transcript longer than the decoder can hold is cut, and then has no end to learn.
        """
        rows = []
        for text, language in zip(texts, languages or [""] * len(texts), strict=True):
            prompt = self.prompt(language)
            ids = self.tokenizer.encode(" " + text.strip(), add_special_tokens=False)
            rows.append((prompt, (ids + [self.eos])[: self.max_len - len(prompt) + 1]))
        length = max(len(prompt) + len(ids) - 1 for prompt, ids in rows)
        inputs = torch.full((len(rows), length), self.eos)
        labels = torch.full((len(rows), length), IGNORED)
        for i, (prompt, ids) in enumerate(rows):
            inputs[i, : len(prompt) + len(ids) - 1] = torch.tensor(prompt + ids[:-1])
            labels[i, len(prompt) - 1 : len(prompt) + len(ids) - 1] = torch.tensor(ids)
        return inputs, labels

    def decode(self, ids: list[int]) -> str:
        """Ids of one transcript -> text."""
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()


def normalise(text: str, language: str = "en") -> str:
    """Text as Whisper's authors score it: case, punctuation and, in English, spelling and numbers made alike."""
    if language not in _NORMALISERS:
        _NORMALISERS[language] = EnglishTextNormalizer() if language == "en" else BasicTextNormalizer()
    return str(_NORMALISERS[language](text))


_NORMALISERS: dict[str, BasicTextNormalizer | EnglishTextNormalizer] = {}
