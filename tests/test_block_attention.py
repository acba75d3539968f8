"""Attention by blocks: the numbers of the dense mask, forward and backward, and the same speech tokens."""

from pathlib import Path

import pytest
import torch

from speechlm.nn.block_attention import Blocks, Masked, visible
from speechlm.nn.ema_vq import EmaVQ
from speechlm.nn.masks import length_mask
from speechlm.nn.whisper_encoder import Bottleneck
from speechlm.nn.whisper_vq import WhisperVQ
from speechlm.tokens.clock import Clock
from tests.tiny_whisper import make_tiny_whisper

LENS = [57, 60, 20, 1, 41, 40]


def inputs(size: int = 60) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(len(LENS), 2, size, 8, generator=generator, requires_grad=True) for _ in range(3)]


def attended(form: str, block: int | None, lens: list[int]) -> list[torch.Tensor]:
    """Outputs at real positions, and the gradients of a sum over them."""
    qkv, ends = inputs(), torch.tensor(lens)
    q, k, v = qkv
    out = visible(ends, 60, block, torch.float32, form).attend(q * 8**-0.5, k, v)
    real = length_mask(ends, 60)[:, None, :, None]
    loss = (out * real).square().sum()
    return [out.detach() * real, *torch.autograd.grad(loss, qkv)]


@pytest.mark.parametrize("block", [1, 7, 20, 59, 60, 100, None])
@pytest.mark.parametrize("lens", [LENS, [60] * 6])
def test_blocks_give_the_outputs_and_gradients_of_the_dense_mask(block: int | None, lens: list[int]):
    dense, blocks = attended("dense", block, lens), attended("blocks", block, lens)
    for one, other in zip(dense, blocks, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    assert dense[1].abs().sum() > 0


def test_a_block_is_masked_only_where_a_recording_ends_inside_it():
    seen = visible(torch.tensor([60, 57, 20]), 60, 20, torch.float32, "blocks")
    assert [(b.start, b.end, b.mask is not None) for b in seen.blocks] == [
        (0, 20, False),
        (20, 40, False),
        (40, 60, True),
    ]


def test_the_faster_form_is_taken():
    lens = torch.tensor([500])
    assert isinstance(visible(lens, 500, 200, torch.float32), Blocks)
    assert isinstance(visible(lens, 500, 50, torch.float32), Masked)  # short blocks lose in the backward pass
    with torch.no_grad():
        assert isinstance(visible(lens, 500, 50, torch.float32), Blocks)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tiny_whisper(tmp_path_factory.mktemp("whisper"), layers=4))


def build(folder: str) -> WhisperVQ:
    torch.manual_seed(0)
    model = WhisperVQ(folder, Clock(), Bottleneck(block_sec=0.48), lambda dim: EmaVQ(dim, 64, init="random")).eval()
    with torch.no_grad():  # codes among the vectors, so that neighbours can be told apart
        vectors, _ = model.encoder.below(*model.log_mel(*recordings()))
    rows = vectors.flatten(0, 1)
    model.encoder.quantizer.codebook.copy_(rows[torch.randperm(len(rows))[:64]])
    return model


def recordings() -> tuple[torch.Tensor, torch.Tensor]:
    lens = torch.tensor([20_000, 33_000, 7_000, 16_000])
    audio = 0.1 * torch.randn(4, 33_000, generator=torch.Generator().manual_seed(0))
    return audio * length_mask(lens, 33_000), lens


def test_both_forms_give_the_same_tokens_and_the_same_gradients_of_a_whole_encoder(folder: str):
    model, results = build(folder), []
    audio, lens = recordings()
    for form in ("dense", "blocks"):
        model.encoder.attention = form
        encoded = model.encoder(*model.log_mel(audio, lens))
        states = encoded.states * length_mask(encoded.state_lens, encoded.states.shape[1])[..., None]
        parameters = [p for p in model.encoder.parameters() if p.requires_grad]
        grads = torch.autograd.grad(states.square().mean(), parameters, allow_unused=True)
        results.append((model.tokenize(audio, lens)[0], states.detach(), [g for g in grads if g is not None]))
    (ids, states, grads), (other_ids, other_states, other_grads) = results
    assert torch.equal(ids, other_ids) and len(ids.unique()) > 10
    torch.testing.assert_close(states, other_states, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(grads, other_grads, atol=1e-5, rtol=1e-4)


def test_positions_follow_weights_that_are_loaded_later(folder: str):
    model, state = build(folder), build(folder).state_dict()
    state["encoder.embed_positions.weight"] = state["encoder.embed_positions.weight"] + 1.0
    before = model.encoder.pooled_positions
    model.load_state_dict(state)
    torch.testing.assert_close(model.encoder.pooled_positions, before + 1.0)
    assert "encoder.pooled_positions" not in model.state_dict()


def test_a_checkpoint_that_drops_attention_weights_is_refused(tmp_path: Path):
    made = make_tiny_whisper(tmp_path)
    config = (made / "config.json").read_text().replace('"attention_dropout": 0.0', '"attention_dropout": 0.1')
    (made / "config.json").write_text(config)
    with pytest.raises(ValueError, match="attention_dropout must be 0"):
        build(str(made))
