"""The speech tokenizer: errors through its bottleneck, health of its codebook, bits per second, whether it tells who speaks."""

from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from speechlm.evals.bootstrap import plain
from speechlm.evals.codebook import codebook_stats
from speechlm.evals.error_rates import error_metrics
from speechlm.evals.items import Item, Unusable, load_audio
from speechlm.evals.pairs import has
from speechlm.evals.parts import Parts
from speechlm.evals.prompts import RATE_HZ
from speechlm.evals.speaker_probe import speaker_leakage
from speechlm.evals.task import Example, Metric, Place, Record, Scored, Task, each, first_by, usable
from speechlm.nn.log_mel import LogMel


class TokenizerTask(Task):
    """Recordings with transcripts: LibriSpeech clean and other, AISHELL-1.

    Args:
        items: file with `speech`, that has audio and `text`, `language`, and `speaker` where it is known; `group` is the part of
            the corpus.
        clip: also count errors of one recording up to its words only, which bounds what one looping transcript costs.
        speakers: whether the probe of speakers is trained.
        shard: recordings that are transcribed together.
        limit: recordings at most.
    """

    uses = MappingProxyType({"answers": ("tokens",)})

    def __init__(
        self, items: str, clip: bool = True, speakers: bool = True, shard: int = 16, limit: int | None = None
    ) -> None:
        self.items, self.clip, self.speakers, self.shard, self.limit = items, clip, speakers, shard, limit

    def check(self, item: Item) -> str:
        """Audio and its transcript."""
        if not (has(item.get("speech"), "S") and item["speech"].get("audio")):
            return "no audio"
        return "" if str(item["speech"].get("text", "")).strip() else "no transcript to compare with"

    def scoring(self) -> dict[str, Any]:
        """What is counted."""
        return {"clip": self.clip, "speakers": self.speakers}

    def answer(self, phase: str, items: list[Item], before: list[Record], parts: Parts, place: Place) -> list[Record]:
        """Codes and transcripts, and mean and spread of the log-mel for the probe."""
        audio, failed = each(items, lambda item: _short_enough(item, place, parts.tokens.longest_sec))
        waves = list(audio.values())
        codes = parts.tokens.tokenize(waves) if parts.tokens.num_codes else [np.zeros(0, np.int64)] * len(waves)
        texts = parts.tokens.transcribe(waves, [items[n].get("language", "") for n in audio])
        made = {
            n: {"text": text, "codes": [int(c) for c in own], "seconds": len(wave) / RATE_HZ, "mel": _mel_of(wave)}
            for n, text, own, wave in zip(audio, texts, codes, waves, strict=True)
        }
        about = {"num_codes": parts.tokens.num_codes, "token_rate_hz": float(parts.tokens.token_rate_hz)}
        return [{**made[n], **about} if n in made else failed[n] for n in range(len(items))]

    def score(self, items: Sequence[Item], records: Sequence[Record], files: Path) -> Scored:
        """Everything about the recordings that could be heard."""
        good, problems = usable(items, records)
        if not good:
            return Scored([], problems=problems)
        references = [item["speech"]["text"] for item, _ in good]
        hypotheses = [record["text"] for _, record in good]
        languages = [item.get("language", "") for item, _ in good]
        groups = [item.get("group", "") for item, _ in good]
        metrics = error_metrics(references, hypotheses, languages, groups=groups)
        if self.clip:
            metrics += error_metrics(references, hypotheses, languages, groups=groups, clip=True)
        if good[0][1]["num_codes"]:  # a model without a quantiser is measured by its transcripts alone
            metrics += _codebook(good) + (_speakers(good) if self.speakers else [])
        examples = [_example(item, record, self.items) for item, record in first_by(good)]
        return Scored(metrics, examples, problems)


def _short_enough(item: Item, place: Place, longest_sec: float) -> np.ndarray:
    """(N,) waveform of an item.

    Raises:
        Unusable: it can not be read, or is longer than the tokenizer hears at once.
    """
    audio = load_audio(item["speech"], place.items, RATE_HZ)
    if len(audio) / RATE_HZ > longest_sec:
        raise Unusable(f"longer than {longest_sec:g} s", f"{len(audio) / RATE_HZ:.1f} s")
    return audio


def _mel_of(audio: np.ndarray) -> list[list[float]]:
    """Mean and standard deviation of every band, all that the probe of the sound looks at."""
    mel = LogMel(80)(torch.from_numpy(audio)[None], torch.tensor([len(audio)]))[0][0].numpy()
    return [[round(float(x), 5) for x in side] for side in (mel.mean(axis=1), mel.std(axis=1))]


def _codebook(good: list[tuple[Item, Record]]) -> list[Metric]:
    about = good[0][1]
    sequences = [np.array(record["codes"], np.int64) for _, record in good]
    stats = codebook_stats(sequences, about["num_codes"], about["token_rate_hz"])
    count = len(good)
    return [
        plain("codes in use", 100 * stats.usage, count, "%", "higher"),
        plain("perplexity", stats.perplexity, count, "codes", "higher"),
        plain("tokens equal to the one before", 100 * stats.repeats, count, "%"),
        plain("token rate", about["token_rate_hz"], count, "Hz"),
        plain("bitrate", stats.bits_per_sec, count, "bit/s", "lower"),
        plain("bitrate as used", stats.entropy_bits_per_sec, count, "bit/s", "lower"),
    ]


def _speakers(good: list[tuple[Item, Record]]) -> list[Metric]:
    known = [(item, record) for item, record in good if item.get("speaker")]
    sequences = [np.array(record["codes"], np.int64) for _, record in known]
    # mean +- spread, twice each, has this mean and this spread
    mels = [np.stack([m + s, m - s], axis=1) for m, s in (np.array(record["mel"]) for _, record in known)]
    probe = speaker_leakage(sequences, [item["speaker"] for item, _ in known], mels, good[0][1]["num_codes"])
    if probe is None:
        return []
    found = [
        Metric(
            "speaker told from tokens",
            100 * probe.from_tokens,
            100 * probe.low,
            100 * probe.high,
            len(known),
            "%",
            "lower",
        ),
        plain("speaker told from the sound", 100 * probe.from_log_mel, len(known), "%"),
        plain("speaker told by chance", 100 * probe.chance, len(known), "%"),
    ]
    return (
        found
        if probe.leakage is None
        else [*found, plain("speaker leakage", 100 * probe.leakage, len(known), "%", "lower")]
    )


def _example(item: Item, record: Record, path: str) -> Example:
    whole = "seconds" not in item["speech"]
    sound = {"recording": Path(path).parent / item["speech"]["audio"]} if whole else {}
    return Example(item["id"], {"reference": item["speech"]["text"], "through the tokens": record["text"]}, sound)
