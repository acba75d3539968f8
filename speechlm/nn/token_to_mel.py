"""Speech tokens to log-mel: an encoder says what each frame should be, a flow makes it so.

tokens ─ embedding ─ TokenEncoder ─ projection ─ LengthRegulator ─▶ mu ─┐
                                        speaker, mel of a prompt ───────┼─▶ Estimator, a few Euler steps ─▶ log-mel
                                                                noise ──┘
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechlm.nn.dit import DiT
from speechlm.nn.estimator import Conditions, Estimator
from speechlm.nn.flow import cosine, cosine_times, euler, flow_loss, guided, path_sample
from speechlm.nn.hashed_noise import hashed_normal
from speechlm.nn.length_regulator import ClockedTokens, LengthRegulator
from speechlm.nn.masks import length_mask
from speechlm.nn.token_encoder import TokenEncoder
from speechlm.tokens.clock import Clock


@dataclass(frozen=True)
class FlowTraining:
    """What is taken away from the conditions while training; the released numbers.

    Args:
        drop: share of recordings whose velocity is told nothing at all, for guidance.
        prompt_share: share of recordings of which a beginning is told.
        longest_prompt: share of the recording that this beginning has at most.
        prior: weight of the squared distance of what tokens say of a frame from the frame itself, of Grad-TTS
            (https://arxiv.org/abs/2105.06337); 0 as released. Tokens then mean something long before the velocity can teach them.
    """

    drop: float = 0.2
    prompt_share: float = 0.5
    longest_prompt: float = 0.8
    prior: float = 0.0

    def __post_init__(self) -> None:
        if not (0 <= self.drop < 1 and 0 <= self.prompt_share <= 1 and 0 <= self.longest_prompt <= 1):
            raise ValueError(f"shares lie in [0, 1], and `drop` below 1, got {self}")
        if self.prior < 0:
            raise ValueError(f"the weight of the prior is at least 0, got {self.prior}")


@dataclass(frozen=True)
class Sampling:
    """How mel is made of noise; the released numbers.

    Args:
        steps: Euler steps, dense near the noise.
        guidance: w in (1 + w) v_c - w v_u; 0 takes half the time.
        temperature: the noise's standard deviation.
        start: time at which the flow sets out, from noise and what the tokens say of a frame in that proportion; 0 is all noise.
            For networks that were trained with a `prior`, which are half way there without a step.
    """

    steps: int = 10
    guidance: float = 0.7
    temperature: float = 1.0
    start: float = 0.0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.guidance < 0 or self.temperature < 0 or not 0 <= self.start < 1:
            raise ValueError(
                f"at least one step, neither guidance nor temperature below 0, and a start in [0, 1), got {self}"
            )

    def set_out(self, z: Tensor, mu: Tensor) -> Tensor:
        """(B, M, F) noise and what tokens say of each frame -> where the flow begins."""
        return z if self.start == 0 else (1 - self.start) * z + self.start * mu

    def times(self, device: torch.device | None = None) -> Tensor:
        """(steps + 1,) times of the Euler steps, from the start to 1."""
        return self.start + (1 - self.start) * cosine_times(self.steps, device)


class Mel(NamedTuple):
    """Log-mels of a batch."""

    mel: Tensor  # (B, M, F), 0 behind each end
    mel_lens: Tensor  # (B,) frames


class Prompt(NamedTuple):
    """The beginning of each recording, which is known and is gone on with: a voice, or what was said so far."""

    tokens: Tensor  # (B, T) speech tokens
    token_lens: Tensor  # (B,)
    mel: Tensor  # (B, M, F) log-mel
    mel_lens: Tensor  # (B,) frames


class TokenToMel(nn.Module):
    """Encoder, length regulator and velocity network; modules are named as in the released weights, `estimator` apart.

    Streams exactly where regulator and estimator are causal, as the default ones are; the released form is
    `StretchedTokens` with `UNet`.

    Args:
        clock: rates of tokens and mel frames.
        num_tokens: size of the tokenizer's codebook V.
        num_mels: M, of every part.
        encoder: over tokens.
        length_regulator: from tokens to frames.
        estimator: the velocity.
        speaker_width: of the speaker vectors.
        mel_mean: subtracted from log-mels before the flow sees them; 0 as released.
        mel_std: they are divided by it; 1 as released.
    """

    def __init__(
        self,
        clock: Clock,
        num_tokens: int = 16_384,
        num_mels: int = 80,
        encoder: TokenEncoder | None = None,
        length_regulator: LengthRegulator | None = None,
        estimator: Estimator | None = None,
        speaker_width: int = 192,
        mel_mean: float = 0.0,
        mel_std: float = 1.0,
    ) -> None:
        super().__init__()
        self.clock, self.num_tokens, self.num_mels = clock, num_tokens, num_mels
        self.mel_mean, self.mel_std = mel_mean, mel_std
        self.encoder = encoder or TokenEncoder(left_blocks=5)
        self.input_embedding = nn.Embedding(num_tokens, self.encoder.width)
        self.length_regulator = length_regulator or ClockedTokens(num_mels)
        self.encoder_proj = nn.Linear(self.encoder.width, num_mels * self.length_regulator.parts)
        self.estimator = estimator or DiT(num_mels)
        self.spk_embed_affine_layer = nn.Linear(speaker_width, num_mels)
        if self.estimator.num_mels != num_mels or mel_std <= 0:
            raise ValueError(
                f"num_mels is that of every part and mel_std positive, got {num_mels} here, {self.estimator.num_mels} in the "
                f"estimator, and mel_std {mel_std}"
            )
        if clock.samples_per_token < clock.hop_samples:
            raise ValueError(f"a token spans at least one mel frame, got {clock}; edit `clock` in the config")

    @property
    def speaker_width(self) -> int:
        """Numbers of a speaker vector."""
        return self.spk_embed_affine_layer.in_features

    @property
    def causal(self) -> bool:
        """Whether frames of a block depend on blocks up to their own only, so that a stream is exact."""
        return self.length_regulator.causal and self.estimator.causal

    @property
    def block_tokens(self) -> int:
        """Tokens of a block."""
        return self.encoder.block_tokens

    # -- parts ---------------------------------------------------------------------------------------------------------

    def embed(self, tokens: Tensor, lens: Tensor) -> Tensor:
        """(B, T) tokens -> (B, T, D), zeros behind each end."""
        real = length_mask(lens, tokens.shape[1])
        return self.input_embedding(tokens * real) * real[:, :, None]

    def encode(self, tokens: Tensor, lens: Tensor) -> Tensor:
        """(B, T) tokens -> (B, T, D) states."""
        return self.encoder(self.embed(tokens, lens), lens)

    def frames(self, tokens: Tensor, lens: Tensor, mel_lens: Tensor) -> Tensor:
        """What tokens say of each frame: (B, T), (B,) tokens, (B,) frames -> (B, M, F)."""
        return self.length_regulator(self.encoder_proj(self.encode(tokens, lens)), lens, mel_lens, self.clock)

    def speaker(self, vectors: Tensor | None, batch_size: int) -> Tensor:
        """(B, S) speaker vectors of any length, None for nobody's -> (B, M); nobody is the released voice."""
        weight = self.spk_embed_affine_layer.weight
        if vectors is None:
            vectors = weight.new_zeros(batch_size, self.speaker_width)
        return self.spk_embed_affine_layer(F.normalize(vectors.to(weight.dtype), dim=1))

    def blocks(self, start: int, stop: int) -> Tensor:
        """(F,) block of each frame from `start` to `stop`."""
        frames = torch.arange(start, stop, device=self.encoder_proj.weight.device)
        return self.clock.block_of_frame(frames, self.block_tokens)

    def normalised(self, mel: Tensor) -> Tensor:
        """Log-mel as the flow sees it."""
        return (mel - self.mel_mean) / self.mel_std

    def denormalised(self, x: Tensor) -> Tensor:
        """The flow's numbers as log-mel, in float32."""
        return x.float() * self.mel_std + self.mel_mean

    # -- training ------------------------------------------------------------------------------------------------------

    def loss(
        self,
        tokens: Tensor,
        lens: Tensor,
        mel: Tensor,
        mel_lens: Tensor,
        generator: torch.Generator | None = None,
        speakers: Tensor | None = None,
        training: FlowTraining = FlowTraining(),
    ) -> Tensor:
        """Scalar: mean squared error of the velocity, at one random time of each recording, and the prior's where it has weight.

        Args:
            tokens: (B, T).
            lens: (B,) tokens.
            mel: (B, M, F) log-mel.
            mel_lens: (B,) frames.
            generator: of times, noise and what is taken away.
            speakers: (B, S).
            training: what is taken away.
        """
        mel = mel[:, :, : int(mel_lens.max())]
        real = length_mask(mel_lens, mel.shape[2])
        x_1 = self.normalised(mel) * real[:, None]

        share, length, drop, u = torch.rand(4, len(mel), generator=generator, device=mel.device)
        z = torch.randn(x_1.shape, generator=generator, device=mel.device)
        mu = self.frames(tokens, lens, mel_lens)
        conditions = Conditions(
            mu,
            self.speaker(speakers, len(mel)),
            beginnings(x_1, mel_lens, training.longest_prompt * length * (share < training.prompt_share)),
        ).kept(drop >= training.drop)
        t = cosine(u)
        x_t, dx_t = path_sample(z, x_1, t)
        v = self.estimator(x_t, t, conditions, mel_lens, self.blocks(0, mel.shape[2]))
        loss = flow_loss(v, dx_t, real)
        return loss + training.prior * flow_loss(mu, x_1, real) if training.prior else loss

    # -- use -----------------------------------------------------------------------------------------------------------

    def sample(
        self,
        tokens: Tensor,
        lens: Tensor,
        seeds: Tensor | None = None,
        speakers: Tensor | None = None,
        prompt: Prompt | None = None,
        sampling: Sampling = Sampling(),
        z: Tensor | None = None,
    ) -> Mel:
        """Log-mels of tokens, each as if it were alone, 0 behind each end; a prompt is gone on with and not repeated.

        Args:
            tokens: (B, T), a prompt's not among them.
            lens: (B,) tokens, at least 1.
            seeds: (B,) int64 of the noise, which is a function of seed, mel bin and frame; zeros where None.
            speakers: (B, S).
            prompt: what is known already.
            sampling: see `Sampling`.
            z: (B, M, F) noise of all frames, the prompt's too, instead of the seeds'.
        """
        if prompt is not None:
            tokens, lens = appended(prompt.tokens, prompt.token_lens, tokens, lens)
        mel_lens = self.clock.frames_of_tokens(lens)
        width = int(mel_lens.max())
        if z is None:
            seeds = torch.zeros_like(lens) if seeds is None else seeds
            z = hashed_normal(seeds, self.num_mels, width) * sampling.temperature
        known = z.new_zeros(z.shape) if prompt is None else self.known(prompt.mel, prompt.mel_lens, width)
        mel = self.follow(z, tokens, lens, mel_lens, known, speakers, sampling)
        if prompt is None:
            return Mel(mel, mel_lens)
        return Mel(*cut_off(mel, self.clock.frames_of_tokens(prompt.token_lens), mel_lens))

    def follow(
        self,
        z: Tensor,
        tokens: Tensor,
        lens: Tensor,
        mel_lens: Tensor,
        known: Tensor,
        speakers: Tensor | None,
        sampling: Sampling,
    ) -> Tensor:
        """(B, M, F) noise -> (B, M, F) log-mel, 0 behind (B,) `mel_lens` frames; `known` is what `known()` makes of a prompt."""
        mu = self.frames(tokens, lens, mel_lens)
        conditions = told_and_not(Conditions(mu, self.speaker(speakers, len(z)), known), sampling.guidance)
        full = bool((mel_lens == z.shape[2]).all())
        ends = None if full else doubled(mel_lens, sampling.guidance)
        blocks = self.blocks(0, z.shape[2])

        def velocity(x: Tensor, t: Tensor, step: int) -> Tensor:
            x, t = doubled(x, sampling.guidance), t.expand(len(conditions.mu))
            return undoubled(self.estimator(x, t, conditions, ends, blocks), sampling.guidance)

        mel = self.denormalised(euler(velocity, sampling.set_out(z, mu), sampling.times(z.device)))
        return mel * length_mask(mel_lens, z.shape[2])[:, None]

    def known(self, mel: Tensor, mel_lens: Tensor, width: int) -> Tensor:
        """(B, M, F) log-mel of (B,) frames -> (B, M, width) as the flow sees it, 0 where nothing is known."""
        known = self.normalised(mel) * length_mask(mel_lens, mel.shape[2])[:, None]
        return F.pad(known, (0, width - mel.shape[2]))


def doubled(x: Tensor, guidance: float) -> Tensor:
    """A batch twice where there is guidance: once with conditions, once without."""
    return torch.cat([x, x]) if guidance else x


def undoubled(v: Tensor, guidance: float) -> Tensor:
    """The velocity to follow, of a batch that was `doubled`."""
    if not guidance:
        return v
    conditional, unconditional = v.chunk(2)
    return guided(conditional, unconditional, guidance)


def told_and_not(conditions: Conditions, guidance: float) -> Conditions:
    """Conditions for `doubled` batches."""
    if not guidance:
        return conditions
    return Conditions.both(conditions, Conditions(*(torch.zeros_like(part) for part in conditions)))


def beginnings(x: Tensor, mel_lens: Tensor, shares: Tensor) -> Tensor:
    """(B, M, F) -> the same, zeros behind the first (B,) `shares` of each recording's frames, rounded down."""
    return x * length_mask((shares * (mel_lens + 1)).floor(), x.shape[2])[:, None]


def appended(first: Tensor, first_lens: Tensor, second: Tensor, second_lens: Tensor) -> tuple[Tensor, Tensor]:
    """Two padded (B, T) batches of tokens as one, without a gap between the rows' parts; -1 behind each end."""
    lens = first_lens + second_lens
    place = torch.arange(int(lens.max()), device=first.device).expand(len(lens), -1)
    behind = place - first_lens[:, None]
    from_first = first.gather(1, place.clamp(max=first.shape[1] - 1)) if first.shape[1] else place
    from_second = second.gather(1, behind.clamp(0, second.shape[1] - 1))
    tokens = torch.where(behind < 0, from_first, from_second)
    return tokens.masked_fill(place >= lens[:, None], -1), lens


def cut_off(mel: Tensor, starts: Tensor, mel_lens: Tensor) -> tuple[Tensor, Tensor]:
    """(B, M, F) without the first (B,) frames of each row, 0 behind each end, and what is left of (B,) lengths."""
    left = mel_lens - starts
    place = torch.arange(int(left.max()), device=mel.device) + starts[:, None]
    kept = mel.gather(2, place.clamp(max=mel.shape[2] - 1)[:, None].expand(-1, mel.shape[1], -1))
    return kept * length_mask(left, kept.shape[2])[:, None], left
