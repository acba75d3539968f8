"""The Whisper a run starts from, untouched: what the bottleneck is compared with, and a teacher for it."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from speechlm.nn.masks import length_mask
from speechlm.nn.whisper_encoder import POSITIONS_PER_SEC, Bottleneck
from speechlm.nn.whisper_vq import Scored, WhisperVQ
from speechlm.tokens.clock import Clock

SourceForm = Literal["published", "unpadded"]


class WhisperSource:
    """A frozen Whisper, outside any module tree, so that it is neither saved nor optimised.

    Args:
        whisper: name or folder of the checkpoint.
        form: how it was trained: "published" Whisper hears 30 s padded with silence and attends to all of it; "unpadded" is a
            checkpoint trained like the tokenizer itself, causal and without padding.
        bare_prompt: transcripts open with the start id only.
    """

    def __init__(self, whisper: str, form: SourceForm = "published", bare_prompt: bool = False) -> None:
        if form not in ("published", "unpadded"):
            raise ValueError(f"source_form must be 'published' or 'unpadded', got {form!r}")
        published = form == "published"
        bottleneck = Bottleneck(block_sec=None if published else 4.0, causal_convs=not published)
        self.padded = published
        clock = Clock(token_rate_hz=POSITIONS_PER_SEC)
        self.model = WhisperVQ(whisper, clock, bottleneck, bare_prompt=bare_prompt)
        self.model.eval().requires_grad_(False)

    def to(self, device: torch.device) -> "WhisperSource":
        """Move to a device."""
        self.model.to(device)
        return self

    def transcribe(self, audio: Tensor, audio_lens: Tensor, languages: list[str] | None = None) -> list[str]:
        """Greedy transcripts of recordings up to 30 s."""
        return self.model.transcribe(*self._heard(audio, audio_lens), languages or [])

    @torch.no_grad()
    def logits(self, outputs: Tensor) -> Tensor:
        """(…, D) decoder outputs -> (…, vocabulary)."""
        return self.model.decoder.logits(outputs)

    @torch.no_grad()
    def score(self, audio: Tensor, audio_lens: Tensor, text_inputs: Tensor) -> Scored:
        """Teacher-forced decoder outputs and encoder states (B, S, D) at 50 Hz."""
        return self.model.score(*self._heard(audio, audio_lens), text_inputs)

    def _heard(self, audio: Tensor, audio_lens: Tensor) -> tuple[Tensor, Tensor]:
        if not self.padded:
            return audio, audio_lens
        full = self.model.max_samples
        return F.pad(audio, (0, max(0, full - audio.shape[1]))), torch.full_like(audio_lens, full)


@dataclass(frozen=True)
class Distillation:
    """Weights of losses that hold a tokenizer to the unquantised model it starts from.

    Useful where hours of speech are few: the teacher's states are a target 12.5 to 50 times a second, a transcript about 4 times,
    and the teacher's logits keep the decoder's knowledge of the language.

    Args:
        states: of the distance between encoder states, in units of the teacher's variance.
        logits: of the divergence of the decoder's predictions from the teacher's.
    """

    states: float = 0.0
    logits: float = 0.0

    @property
    def active(self) -> bool:
        """Whether a teacher is needed at all."""
        return self.states > 0 or self.logits > 0


def states_distance(student: Scored, teacher: Scored, pooling: int) -> Tensor:
    """Mean squared distance of encoder states to the teacher's, pooled to the same rate, in units of the teacher's variance.

    Args:
        student: states (B, T, D).
        teacher: states (B, S, D), `pooling` times as many per second.
        pooling: teacher positions per student state.
    """
    target = F.avg_pool1d(teacher.states.float().transpose(1, 2), pooling).transpose(1, 2)
    frames = min(target.shape[1], student.states.shape[1])
    target = target[:, :frames]
    real = length_mask(student.state_lens, frames)[..., None]
    distance = (student.states[:, :frames].float() - target).square()
    spread = target[real.expand_as(target)].var().clamp(min=1e-6)
    return (distance * real).sum() / (real.sum().clamp(min=1) * target.shape[-1]) / spread


def logits_divergence(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Mean Kullback-Leibler divergence of (n, V) predictions from the teacher's."""
    student_log, teacher_log = (F.log_softmax(x.float(), dim=-1) for x in (student_logits, teacher_logits))
    return F.kl_div(student_log, teacher_log, log_target=True, reduction="batchmean")
