"""Sound in memory to speech tokens by the paper's tokenizer, against transformers' usual loop, without lhotse or files."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from speechlm.nn.ema_vq import EmaVQ
from speechlm.nn.log_mel import LogMel
from speechlm.nn.masks import length_mask
from speechlm.nn.whisper_encoder import Bottleneck, WhisperVQEncoder
from speechlm.nn.whisper_tokens import WhisperTokens
from speechlm.tokens.clock import Clock

CLOCK = Clock()
Batch = tuple[Tensor, Tensor]  # (B, N) sound, (B,) samples


@torch.no_grad()
def measure(device: str, timed: Callable[[Callable[[], Any], str, int], float]) -> tuple[float, float, str]:
    """Seconds of sound per second in bfloat16, of ours and of the usual loop, and what is to be said of it.

    Ours is Whisper large-v3 up to its 16th layer with random weights and 16,384 codes; lengths are like LibriSpeech's, the sound
    is noise. The usual loop has the same layers: log-mel on the CPU, one recording at a time, padded to 30 s.

    Args:
        device: "cuda", or "cpu" for tiny sizes.
        timed: seconds of work on a device, by so many repeats.
    """
    width, layers, heads, codes = (1280, 16, 20, 16_384) if device == "cuda" else (64, 2, 2, 64)
    shape = WhisperConfig(d_model=width, encoder_layers=layers, encoder_attention_heads=heads, encoder_ffn_dim=4 * width,
                          num_mel_bins=128, attn_implementation="sdpa")  # fmt: skip
    batches = batches_of(*((512, 600.0) if device == "cuda" else (6, 30.0)), device)
    tokenizer = tokenizer_of(shape, codes, batches[-1], device)
    every = max(1, len(batches) // 8)
    singles = [(audio[0, : int(lens[0])].cpu(), int(lens[0])) for audio, lens in batches[::every]]
    with torch.autocast(device, torch.bfloat16):
        ours = timed(lambda: [tokenizer.tokenize(*batch)[0].cpu() for batch in batches], device, 3)
        usual = timed(lambda: usual_loop(tokenizer, singles, shape.num_mel_bins, device), device, 3)
        differing = differing_alone(tokenizer, batches[0])
    samples = sum(int(lens.sum()) for _, lens in batches)
    padding = 1 - samples / sum(audio.numel() for audio, _ in batches)
    note = f"{padding:.1%} padding; {differing:.2%} of the tokens are others than alone, in bfloat16"
    rate = CLOCK.sample_rate_hz
    return samples / rate / ours, sum(count for _, count in singles) / rate / usual, note


def batches_of(recordings: int, seconds: float, device: str) -> list[Batch]:
    """Noise, by length, as many seconds with padding in a batch."""
    generator = torch.Generator().manual_seed(0)
    lengths = (13.0 + 4.5 * torch.randn(recordings, generator=generator)).clamp(1.5, 17.0).sort().values
    groups: list[list[float]] = [[]]
    for length in lengths.tolist():  # ascending, so the last of a group is what it is padded to
        if groups[-1] and (len(groups[-1]) + 1) * length > seconds:
            groups.append([])
        groups[-1].append(length)
    batches = []
    for group in groups:
        lens = (torch.tensor(group) * CLOCK.sample_rate_hz).long().to(device)
        batches.append((0.1 * torch.randn(len(group), int(lens.max()), device=device), lens))
    return batches


def tokenizer_of(shape: WhisperConfig, codes: int, batch: Batch, device: str) -> WhisperTokens:
    """Random weights, and codes that are vectors of the network, with noise of 1 % added."""
    log_mel = LogMel(shape.num_mel_bins, CLOCK.samples_per_token).to(device)
    bottleneck = Bottleneck(after_layer=shape.encoder_layers)
    encoder = WhisperVQEncoder(WhisperEncoder(shape), 4, bottleneck, lambda dim: EmaVQ(dim, codes, init="random"))
    encoder.eval().to(device)
    assert isinstance(encoder.quantizer, EmaVQ)
    audio, lens = batch
    found = encoder.below(*log_mel(audio[:8], lens[:8]))[0].flatten(0, 1)
    vectors = found[torch.randint(len(found), (codes,), generator=torch.Generator().manual_seed(1)).to(device)]
    encoder.quantizer.codebook.copy_(vectors + 0.01 * vectors.std() * torch.randn_like(vectors))
    return WhisperTokens(log_mel, encoder, CLOCK)


def usual_loop(tokenizer: WhisperTokens, recordings: list[tuple[Tensor, int]], mel_bins: int, device: str) -> None:
    """One recording after the other, as scripts around transformers have it."""
    extractor, encoder = WhisperFeatureExtractor(feature_size=mel_bins), tokenizer.encoder
    for audio, samples in recordings:
        with torch.autocast(device, enabled=False):
            mel = extractor(audio.numpy(), sampling_rate=CLOCK.sample_rate_hz, return_tensors="pt").input_features
        tokens = torch.tensor([CLOCK.num_tokens(samples)], device=device)
        x, _ = encoder.below(mel.to(device), tokens * CLOCK.samples_per_token // CLOCK.hop_samples)
        assert encoder.quantizer is not None
        encoder.quantizer(x, length_mask(tokens, x.shape[1])).codes.cpu()


def differing_alone(tokenizer: WhisperTokens, batch: Batch) -> float:
    """Share of the tokens of a batch's first recordings that are others when each is alone."""
    audio, lens = batch
    together = tokenizer.tokenize(audio, lens)[0]
    differing = total = 0
    for i in range(min(4, len(lens))):
        alone = tokenizer.tokenize(audio[i : i + 1, : int(lens[i])], lens[i : i + 1])[0][0]
        differing, total = differing + int((alone != together[i, : len(alone)]).sum()), total + len(alone)
    return differing / total
