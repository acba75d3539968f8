"""Memory and operations of the stages that train on recordings: their networks are run on fake tensors and looked at."""

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from jsonargparse import ArgumentParser
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import WhisperForConditionalGeneration

from speechlm.nn.recompute import recompute
from speechlm.planning.shapes import shape_of
from speechlm.planning.traced import Traced, traced

PIECE_SEC = 30.0  # what Whisper is traced with
FLOW_SEC = 4.0
TEXT_PER_SEC = 4.0  # ids of a transcript per second of speech


@dataclass(frozen=True)
class SoundCost:
    """Of a micro-batch on one GPU.

    Attributes:
        parameters: that are trained, and in which an average may be kept.
        traced: what is kept, and the operations of a step.
        useful: operations without recomputation.
        where: the shape is from.
    """

    parameters: int
    traced: Traced
    useful: float
    where: str


def whisper_cost(settings: dict[str, Any], seconds: float, mixed: bool) -> SoundCost:
    """Of a speech tokenizer: the Whisper it starts from, with as many positions as its recordings have.

    The quantiser is not among it, nor that the layers behind it see fewer positions.
    """
    shape, where = shape_of(settings["whisper"])
    again = bool((settings.get("bottleneck") or {}).get("activation_checkpointing"))
    pieces = max(1, round(seconds / PIECE_SEC))
    scale = seconds / (pieces * PIECE_SEC)
    found = [_whisper(shape, pieces, mixed, form) for form in sorted({again, False}, reverse=True)]
    count = sum(p.numel() for p in _on_meta(shape).parameters())
    return SoundCost(count, _scaled(found[0], scale), found[-1].flops * scale, where)


def flow_cost(settings: dict[str, Any], clock: dict[str, Any], seconds: float, mixed: bool) -> SoundCost:
    """Of a flow decoder: the velocity of one short recording, forward and backward, really computed (its code reads lengths)."""
    network: Any = built(settings["network"]).train()
    tokens = int(FLOW_SEC * clock["token_rate_hz"])
    frames = int(tokens * clock["sample_rate_hz"] / clock["token_rate_hz"] / clock["hop_samples"])
    mel = torch.zeros(1, network.num_mels, frames)

    def work() -> Tensor:
        lens, mel_lens = torch.tensor([tokens]), torch.tensor([frames])
        return network.loss(torch.zeros(1, tokens, dtype=torch.long), lens, mel, mel_lens, speakers=None)

    found = _scaled(traced(work, mixed), seconds / FLOW_SEC)
    return SoundCost(_count(network), found, found.flops, "the config")


def vocoder_cost(settings: dict[str, Any], clock: dict[str, Any], seconds: float, mixed: bool) -> SoundCost:
    """Of a vocoder: the generator once, the judges three times (both kinds of sound, and twice for the generator)."""
    frames = round(seconds * clock["sample_rate_hz"] / clock["hop_samples"])
    with FakeTensorMode(allow_non_fake_inputs=True):
        generator: Any = built(settings["generator"]).train()
        judges: Any = built(settings["discriminator"]).train()
        rows = max(1, frames // 96)
        mel = torch.zeros(rows, generator.num_mels, 96)
        sound = torch.zeros(2 * rows, 96 * generator.hop_samples)
        speak = traced(lambda: generator(mel, None, torch.zeros(rows, dtype=torch.long)).audio, mixed)
        judge = traced(lambda: torch.stack([_summed(j) for j in judges(sound)]), mixed)
    both = Traced(*(a + 2 * b for a, b in zip(speak, judge, strict=True)))
    both = _scaled(both._replace(kept=speak.kept + judge.kept), frames / (96 * rows))
    return SoundCost(_count(generator) + _count(judges), both, both.flops, "the config")


def built(settings: dict[str, Any]) -> nn.Module:
    """A module of a config: class and arguments."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--part", type=nn.Module)
    return parser.instantiate(parser.parse_object({"part": settings})).part


def _whisper(shape: Any, pieces: int, mixed: bool, again: bool) -> Traced:
    """Of all layers, from one and two on each side: every layer of a side costs the same."""
    one, encoder, decoder = (
        _traced_whisper(_shortened(shape, *layers), pieces, mixed, again) for layers in ((1, 1), (2, 1), (1, 2))
    )
    more = (shape.encoder_layers - 1, shape.decoder_layers - 1)
    return Traced(*(a + more[0] * (b - a) + more[1] * (c - a) for a, b, c in zip(one, encoder, decoder, strict=True)))


def _shortened(shape: Any, encoder_layers: int, decoder_layers: int) -> Any:
    short = copy.deepcopy(shape)
    short.encoder_layers, short.decoder_layers = encoder_layers, decoder_layers
    short.num_hidden_layers = encoder_layers
    return short


def _traced_whisper(shape: Any, pieces: int, mixed: bool, again: bool) -> Traced:
    length = math.ceil(PIECE_SEC * TEXT_PER_SEC)
    with FakeTensorMode():
        model = WhisperForConditionalGeneration(shape).train()
        recompute([*model.model.encoder.layers, *model.model.decoder.layers], again)
        mel = torch.zeros(pieces, shape.num_mel_bins, 2 * shape.max_source_positions)
        ids = torch.zeros(pieces, length, dtype=torch.long)

        def work() -> Tensor:
            return model.model(input_features=mel, decoder_input_ids=ids, use_cache=False).last_hidden_state

        return traced(work, mixed)


def _on_meta(shape: Any) -> nn.Module:
    with torch.device("meta"):
        return WhisperForConditionalGeneration(shape)


def _summed(judgement: Any) -> Tensor:
    return torch.stack(
        [x.float().sum() for x in torch.utils._pytree.tree_leaves(judgement) if isinstance(x, Tensor)]
    ).sum()


def _scaled(found: Traced, factor: float) -> Traced:
    return Traced(*(value * factor for value in found))


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
