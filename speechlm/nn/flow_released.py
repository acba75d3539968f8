"""The flow decoder's released weights, in and out: `flow.pt` of GLM-4-Voice (no pickle is executed) and safetensors."""

import re
from pathlib import Path

from torch import Tensor

from speechlm.nn.length_regulator import StretchedTokens
from speechlm.nn.token_encoder import TokenEncoder
from speechlm.nn.token_to_mel import TokenToMel
from speechlm.nn.unet import UNet
from speechlm.nn.weights import fill, read_released, write_released
from speechlm.tokens.clock import Clock

RELEASED, OURS = "decoder.estimator.", "estimator."


class ReleasedFlow(TokenToMel):
    """A flow decoder with the weights of a file in the released form, its shape taken from theirs.

    Args:
        clock: rates of tokens and mel frames.
        path: `flow.pt` or `flow.safetensors`.
        block_tokens: tokens of a block, which the weights do not say.
        head_width: of the U-Net's attention, which they do not say either.
        dropout: of the encoder, for training on.

    Raises:
        ValueError: the file can not be read without executing code, or holds no flow decoder of the released form.
    """

    def __init__(
        self, clock: Clock, path: str, block_tokens: int = 10, head_width: int = 64, dropout: float = 0.1
    ) -> None:
        weights = {_own_name(name): value for name, value in read_released(Path(path)).items()}
        try:
            encoder, unet = _encoder(weights, block_tokens, dropout), _unet(weights, head_width)
            super().__init__(
                clock,
                num_tokens=weights["input_embedding.weight"].shape[0],
                num_mels=unet.num_mels,
                encoder=encoder,
                length_regulator=StretchedTokens(
                    unet.num_mels, _count(weights, r"length_regulator\.model\.(\d+)\.") // 3
                ),
                estimator=unet,
                speaker_width=weights["spk_embed_affine_layer.weight"].shape[1],
            )
        except (KeyError, IndexError) as error:
            raise ValueError(f"{path} holds no flow decoder: it lacks {error}") from error
        fill(self, weights, path, "a flow decoder")


def write_flow(network: TokenToMel, path: str | Path) -> None:
    """Write a flow decoder's weights under their released names, whole or not at all: `.safetensors`, or `.pt` for the released
    code.

    Raises:
        ValueError: neither ending, or a network that the released code does not know.
    """
    if not isinstance(network.estimator, UNet) or not isinstance(network.length_regulator, StretchedTokens):
        raise ValueError(
            f"the released form is StretchedTokens with UNet, this network has {type(network.length_regulator).__name__} with "
            f"{type(network.estimator).__name__}"
        )
    if (network.mel_mean, network.mel_std) != (0.0, 1.0):
        raise ValueError(
            "the released form takes log-mels as they are, this network was trained with mel_mean or mel_std"
        )
    weights = {_released_name(name): value for name, value in network.state_dict().items()}
    write_released(weights, Path(path), "a flow decoder")


def _encoder(weights: dict[str, Tensor], block_tokens: int, dropout: float) -> TokenEncoder:
    ffn, width = weights["encoder.encoders.0.feed_forward.w_1.weight"].shape
    heads = weights["encoder.encoders.0.self_attn.pos_bias_u"].shape[0]
    return TokenEncoder(
        width, heads, ffn, _count(weights, r"encoder\.encoders\.(\d+)\."), block_tokens, dropout=dropout
    )


def _unet(weights: dict[str, Tensor], head_width: int) -> UNet:
    stages = range(_count(weights, r"estimator\.down_blocks\.(\d+)\."))
    return UNet(
        num_mels=weights["estimator.final_proj.weight"].shape[0],
        channels=tuple(weights[f"estimator.down_blocks.{i}.0.res_conv.weight"].shape[0] for i in stages),
        transformers=_count(weights, r"estimator\.down_blocks\.0\.1\.(\d+)\."),
        mid_stages=_count(weights, r"estimator\.mid_blocks\.(\d+)\."),
        heads=weights["estimator.down_blocks.0.1.0.attn1.to_q.weight"].shape[0] // head_width,
        head_width=head_width,
    )


def _count(weights: dict[str, Tensor], pattern: str) -> int:
    """One more than the largest number in names that begin like this."""
    found = [int(match[1]) for name in weights if (match := re.match(pattern, name))]
    if not found:
        raise KeyError(pattern)
    return max(found) + 1


def _own_name(name: str) -> str:
    return OURS + name.removeprefix(RELEASED) if name.startswith(RELEASED) else name


def _released_name(name: str) -> str:
    return RELEASED + name.removeprefix(OURS) if name.startswith(OURS) else name
