"""Small networks of the flow decoder, of both forms, for tests."""

import torch
from torch import Tensor

from speechlm.nn.dit import DiT
from speechlm.nn.length_regulator import ClockedTokens, StretchedTokens
from speechlm.nn.token_encoder import TokenEncoder
from speechlm.nn.token_to_mel import Mel, TokenToMel
from speechlm.nn.unet import UNet
from speechlm.tokens.clock import Clock

CLOCK = Clock(sample_rate_hz=22_050, token_rate_hz=12.5, hop_samples=256)
V, M = 32, 8


def causal(left_blocks: int | None = 1, dropout: float = 0.0) -> TokenToMel:
    """The streaming form, its zeros at the beginning of training filled."""
    torch.manual_seed(0)
    network = TokenToMel(
        CLOCK,
        num_tokens=V,
        num_mels=M,
        encoder=TokenEncoder(16, 2, 32, 2, left_blocks=left_blocks, dropout=dropout),
        length_regulator=ClockedTokens(M, convolutions=2, parts=3),
        estimator=DiT(M, 16, 2, 2, 32, kernel=5, left_blocks=left_blocks),
        speaker_width=6,
        mel_mean=-2.0,
        mel_std=2.0,
    )
    return filled(network)


def released(dropout: float = 0.0) -> TokenToMel:
    """The released form."""
    torch.manual_seed(0)
    network = TokenToMel(
        CLOCK,
        num_tokens=V,
        num_mels=M,
        encoder=TokenEncoder(16, 2, 32, 2, dropout=dropout),
        length_regulator=StretchedTokens(M, convolutions=2),
        estimator=UNet(M, (16, 24, 16), transformers=1, mid_stages=1, heads=2, head_width=4),
        speaker_width=6,
    )
    return filled(network)


FORMS = {"causal": causal, "released": released}


def filled(network: TokenToMel) -> TokenToMel:
    """Numbers where training begins with zeros, so that nothing is hidden by them."""
    for name, parameter in network.named_parameters():
        if "modulation" in name or "outward" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return network.eval()


def tokens_of(*lens: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random tokens, -1 behind each end."""
    draw = torch.randint(0, V, (len(lens), max(lens)), generator=torch.Generator().manual_seed(seed))
    wanted = torch.tensor(lens)
    return draw.masked_fill(torch.arange(max(lens)) >= wanted[:, None], -1), wanted


def mel_of(*frames: int, seed: int = 0) -> Mel:
    """Random mels, 0 behind each end."""
    lens = torch.tensor(frames)
    mel = torch.randn(len(frames), M, max(frames), generator=torch.Generator().manual_seed(seed)) - 2.0
    return Mel(mel * (torch.arange(max(frames)) < lens[:, None])[:, None], lens)
