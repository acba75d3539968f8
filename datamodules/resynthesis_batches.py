"""Recordings with their speech tokens, decoded and made a batch of: what `ResynthesisDataModule` has done in its workers."""

from dataclasses import dataclass

import numpy as np
import torch
from lhotse.array import TemporalArray
from lhotse.cut import Cut, MonoCut, MultiCut

from datamodules.audio_batches import DecodingDataset, text_of
from datamodules.pitch import PitchMethod, pitch_of
from datamodules.recordings import BadRecording, load_recording
from datamodules.token_folder import FIELD
from speechlm.batch import ResynthesisBatch
from speechlm.tokens.clock import Clock


@dataclass(frozen=True)
class Row:
    """One recording of a batch."""

    audio: np.ndarray  # (N,) float32
    tokens: np.ndarray  # (T,) int64
    pitch: np.ndarray  # (F,) float32, Hz
    cut: Cut


class ResynthesisDataset(DecodingDataset[Row, ResynthesisBatch]):
    """Recordings with their speech tokens and their pitch.

    Args:
        clock: rates.
        tokens: read speech tokens; a recording without good ones is skipped.
        pitch: how to find the pitch, or None.
        segment_samples: make every recording this long, from the middle of what was decoded.
        tolerance_sec: see `load_recording`.
    """

    def __init__(
        self,
        clock: Clock,
        tokens: bool = True,
        pitch: PitchMethod | None = None,
        segment_samples: int | None = None,
        tolerance_sec: float = 0.1,
    ) -> None:
        self.clock, self.tokens, self.pitch = clock, tokens, pitch
        self.segment_samples, self.tolerance_sec = segment_samples, tolerance_sec

    def _row(self, cut: Cut) -> Row:
        audio = load_recording(cut, self.clock, self.tolerance_sec)
        if self.segment_samples is not None:
            audio = _middle(audio, self.segment_samples)
        tokens = np.zeros(0, np.int64)
        if self.tokens:
            audio, tokens = aligned(audio, load_tokens(cut, self.clock), self.clock)
        pitch = pitch_of(audio, self.clock, self.pitch) if self.pitch else np.zeros(0, np.float32)
        return Row(audio, tokens, pitch, cut)

    def _batch(self, rows: list[Row], skipped: list[tuple[str, str]], first: Cut) -> ResynthesisBatch:
        supervisions = [next(iter(row.cut.supervisions), None) for row in rows]
        return ResynthesisBatch(
            speech_tokens=_padded([row.tokens for row in rows], -1),
            speech_token_lens=torch.tensor([len(row.tokens) for row in rows]),
            audio=_padded([row.audio for row in rows], 0.0),
            audio_lens=torch.tensor([len(row.audio) for row in rows]),
            sample_rate_hz=self.clock.sample_rate_hz,
            speakers=[(s.speaker or "") if s else "" for s in supervisions],
            texts=[text_of(row.cut) for row in rows],
            cut_ids=[row.cut.id for row in rows],
            languages=[(s.language or "") if s else "" for s in supervisions],
            skipped=skipped,
            f0=_padded([row.pitch for row in rows], 0.0) if self.pitch else None,
        )


def load_tokens(cut: Cut, clock: Clock) -> np.ndarray:
    """(T,) int64 speech tokens from the cut's first sample on; those behind its end are not yet taken off.

    Raises:
        BadRecording: there are none, at another rate, unreadable, negative, or the cut begins inside of one.
    """
    field = cut.custom.get(FIELD) if isinstance(cut, MonoCut | MultiCut) and cut.custom else None
    if not isinstance(field, TemporalArray):
        raise BadRecording("no speech tokens", f"the cut has no field {FIELD!r} of tokens over time")
    if abs(field.frame_shift * clock.token_rate_hz - 1.0) > 1e-3:
        rate = f"{1.0 / field.frame_shift:.4g} tokens per second, the clock {clock.token_rate_hz:g}"
        raise BadRecording("other token rate", f"its tokens are {rate}")
    if field.end > cut.recording.duration + 1.01 / clock.token_rate_hz:
        ends = f"its tokens end at {field.end:.3f} s, the recording at {cut.recording.duration:.3f} s"
        raise BadRecording("misaligned tokens", ends)
    first = (cut.start - field.start) * clock.token_rate_hz
    if first < -0.01 or abs(first - round(first)) > 0.01:
        raise BadRecording("misaligned tokens", f"the cut begins {first:.3f} tokens behind the first one")
    try:
        tokens = np.asarray(field.load())
    except Exception as error:  # storages raise whatever they like
        raise BadRecording("unreadable tokens", f"{type(error).__name__}: {error}") from error
    if tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.integer) or (tokens < 0).any():
        raise BadRecording("unreadable tokens", f"expected ids in one row, got {tokens.dtype} {tokens.shape}")
    return tokens[round(first) :].astype(np.int64)


def aligned(audio: np.ndarray, tokens: np.ndarray, clock: Clock) -> tuple[np.ndarray, np.ndarray]:
    """(N,) samples and (T,) tokens that begin together -> as many tokens as the samples fill, the last maybe in part.

    More tokens than that belong to what was cut off the recording. One too few happens where the tokenizer's sample rate rounds
    the recording down to whole tokens: the samples beyond go.

    Raises:
        BadRecording: more than one token is missing.
    """
    needed = clock.num_tokens(len(audio))
    if len(tokens) < needed - 1 or len(tokens) == 0:
        raise BadRecording("misaligned tokens", f"{len(tokens)} tokens for {len(audio)} samples, which fill {needed}")
    tokens = tokens[:needed]
    return audio[: clock.samples_of_tokens(len(tokens))], tokens


def _middle(audio: np.ndarray, num_samples: int) -> np.ndarray:
    """(N,) -> (num_samples,): the middle, or all of it and silence behind."""
    start = max(0, (len(audio) - num_samples) // 2)
    piece = audio[start : start + num_samples]
    return np.pad(piece, (0, num_samples - len(piece)))


def _padded(rows: list[np.ndarray], value: float) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence([torch.from_numpy(row) for row in rows], True, value)
