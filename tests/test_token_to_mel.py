"""Tokens to mel: every row as if it were alone, whatever lies behind its end; what may depend on what."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from speechlm.nn.dit import DiT
from speechlm.nn.estimator import Conditions
from speechlm.nn.length_regulator import ClockedTokens, stretched_indices
from speechlm.nn.masked_norm import MaskedGroupNorm
from speechlm.nn.relative_attention import RelativeAttention, distance_sinusoids
from speechlm.nn.token_encoder import TokenEncoder
from speechlm.nn.token_to_mel import FlowTraining, Prompt, Sampling, TokenToMel, appended, beginnings, cut_off
from speechlm.tokens.clock import Clock
from tests.tiny_flow import CLOCK, FORMS, M, V, causal, mel_of, released, tokens_of

FEW = Sampling(steps=3)
BOTH = pytest.mark.parametrize("form", FORMS)


def prompt_of(*lens: int, seed: int = 5) -> Prompt:
    tokens, token_lens = tokens_of(*lens, seed=seed)
    return Prompt(tokens, token_lens, *mel_of(*CLOCK.frames_of_tokens(token_lens).tolist(), seed=seed))


# -- alone and together ------------------------------------------------------------------------------------------------


@BOTH
@torch.no_grad()
def test_a_batch_makes_what_each_recording_makes_alone(form: str):
    network, (tokens, lens) = FORMS[form](), tokens_of(23, 1, 14, 30)
    seeds, speakers = torch.tensor([3, 1, 4, 1]), torch.randn(4, 6)
    together = network.sample(tokens, lens, seeds, speakers, sampling=FEW)
    assert together.mel_lens.tolist() == CLOCK.frames_of_tokens(lens).tolist()
    for row, (length, frames) in enumerate(zip(lens.tolist(), together.mel_lens.tolist(), strict=True)):
        one = slice(row, row + 1)
        alone = network.sample(tokens[one, :length], lens[one], seeds[one], speakers[one], sampling=FEW)
        assert (together.mel[row, :, :frames] - alone.mel[0]).abs().max() < 1e-4
        assert (together.mel[row, :, frames:] == 0).all()


@BOTH
@torch.no_grad()
def test_prompts_of_several_lengths_in_a_batch_are_those_of_each_alone(form: str):
    network, (tokens, lens), prompt = FORMS[form](), tokens_of(9, 16, 4), prompt_of(12, 3, 20)
    together = network.sample(tokens, lens, prompt=prompt, sampling=FEW)
    for row, frames in enumerate(together.mel_lens.tolist()):
        part = Prompt(*(value[row : row + 1] for value in prompt))
        alone = network.sample(tokens[row : row + 1], lens[row : row + 1], prompt=part, sampling=FEW)
        assert alone.mel_lens.tolist() == [frames]
        assert (together.mel[row, :, :frames] - alone.mel[0, :, :frames]).abs().max() < 1e-4


@BOTH
def test_padding_changes_neither_the_loss_nor_its_gradient(form: str):
    network = FORMS[form]()
    tokens, lens = tokens_of(6, 11)
    mel, mel_lens = mel_of(41, 75)

    def gradients(longer: int, rubbish: float) -> tuple[float, list[Tensor]]:
        network.zero_grad()
        behind = (torch.arange(75 + longer) >= mel_lens[:, None])[:, None]
        wide = F.pad(mel, (0, longer)) + rubbish * behind
        said = F.pad(tokens, (0, longer), value=-1).masked_fill(
            torch.arange(11 + longer) >= lens[:, None], int(rubbish)
        )
        loss = network.loss(said, lens, wide, mel_lens, torch.Generator().manual_seed(0), training=FlowTraining(0.0))
        loss.backward()
        return loss.item(), [p.grad.clone() for p in network.parameters() if p.grad is not None]

    near, far = gradients(0, 0.0), gradients(9, 5.0)
    assert near[0] == pytest.approx(far[0], rel=1e-5)
    assert all(torch.allclose(a, b, atol=1e-5, rtol=1e-3) for a, b in zip(near[1], far[1], strict=True))


@BOTH
@torch.no_grad()
def test_the_velocity_of_a_padded_row_is_that_of_the_row_alone(form: str):
    network, lens = FORMS[form](), torch.tensor([75, 42])
    x, conditions = torch.randn(2, M, 75), Conditions(torch.randn(2, M, 75), torch.randn(2, M), torch.randn(2, M, 75))
    t = torch.rand(2)
    together = network.estimator(x, t, conditions, lens, network.blocks(0, 75))
    row = Conditions(conditions.mu[1:, :, :42], conditions.speaker[1:], conditions.prompt[1:, :, :42])
    alone = network.estimator(x[1:, :, :42], t[1:], row, None, network.blocks(0, 42))
    assert (together[1, :, :42] - alone[0]).abs().max() < 1e-5
    assert (together[1, :, 42:] == 0).all()


@torch.no_grad()
def test_a_masked_norm_is_the_norm_of_a_recording_alone():
    norm = MaskedGroupNorm(2, 6)
    torch.nn.init.normal_(norm.weight)
    x, real = torch.randn(2, 6, 9), (torch.arange(9) < torch.tensor([9, 4])[:, None])[:, None]
    made = norm(x, real)
    assert torch.allclose(made[0], norm(x)[0], atol=1e-5)
    assert torch.allclose(made[1, :, :4], norm(x[1:, :, :4])[0], atol=1e-5)


# -- what may depend on what -------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_token_of_a_later_block_never_changes_the_frames_before():
    network, (tokens, lens) = causal(), tokens_of(30)
    other = tokens.clone()
    other[:, 20:] = (other[:, 20:] + 1) % V
    border = CLOCK.frames_of_tokens(20)
    one, two = (network.sample(t, lens, sampling=FEW).mel for t in (tokens, other))
    assert torch.equal(one[:, :, :border], two[:, :, :border])
    assert (one[:, :, border:] - two[:, :, border:]).abs().max() > 1e-3
    shorter = network.sample(tokens[:, :20], torch.tensor([20]), sampling=FEW).mel
    assert (one[:, :, :border] - shorter).abs().max() < 1e-5


@torch.no_grad()
def test_a_frame_hears_its_whole_block():
    network, (tokens, lens) = causal(), tokens_of(20)
    other = tokens.clone()
    other[:, 19] = (other[:, 19] + 1) % V
    one, two = (network.sample(t, lens, sampling=FEW).mel for t in (tokens, other))
    begin = CLOCK.frames_of_tokens(10)
    assert (one[:, :, begin : begin + 5] - two[:, :, begin : begin + 5]).abs().max() > 1e-4
    assert torch.equal(one[:, :, :begin], two[:, :, :begin])


@pytest.mark.parametrize("left_blocks", [0, 1, None])
@torch.no_grad()
def test_the_encoder_sees_so_many_blocks_to_the_left_in_each_layer(left_blocks: int | None):
    encoder = TokenEncoder(16, 2, 32, 2, block_tokens=3, left_blocks=left_blocks, dropout=0.0).eval()
    x = torch.randn(1, 15, 16, requires_grad=True)
    with torch.enable_grad():
        (encoder(x, torch.tensor([15]))[:, 12:] * torch.randn(3, 16)).sum().backward()  # the sum of a norm is constant
    assert x.grad is not None
    heard = x.grad.abs().sum(2)[0] > 0
    first = 0 if left_blocks is None else 12 - 2 * 3 * left_blocks  # two layers
    assert heard.tolist() == [i >= first for i in range(15)]


@torch.no_grad()
def test_relative_attention_is_its_formula():
    attention = RelativeAttention(8, 2)
    x, distances = torch.randn(1, 5, 8), distance_sinusoids(5, 5, 8)
    made, _ = attention(x, distances, torch.ones(1, 1, 5, 5, dtype=torch.bool))
    q, k, v = (layer(x)[0].view(5, 2, 4) for layer in (attention.linear_q, attention.linear_k, attention.linear_v))
    r = attention.linear_pos(distances).view(9, 2, 4)  # of distances 4 to -4
    heard = torch.zeros(5, 2, 4)
    for h in range(2):
        for i in range(5):
            content = (q[i, h] + attention.pos_bias_u[h]) @ k[:, h].T
            place = torch.stack([(q[i, h] + attention.pos_bias_v[h]) @ r[4 - (i - j), h] for j in range(5)])
            heard[i, h] = ((content + place) / 2).softmax(0) @ v[:, h]
    assert torch.allclose(made[0], attention.linear_out(heard.flatten(1)), atol=1e-5)


# -- frames and tokens -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [1, 2, 10, 23, 25, 50, 375])
def test_tokens_are_stretched_as_torch_stretches_them(tokens: int):
    for frames in (CLOCK.frames_of_tokens(tokens), CLOCK.frames_of_tokens(tokens) - 3):
        index = torch.arange(tokens, dtype=torch.float32)[None, None]
        expected = F.interpolate(index, size=frames, mode="nearest")[0, 0]
        made = stretched_indices(torch.tensor([tokens]), torch.tensor([frames]), frames)[0]
        assert torch.equal(made, expected.long())


def test_each_part_of_a_token_speaks_in_its_own_frames():
    regulator = ClockedTokens(1, convolutions=1, parts=2)
    x = torch.tensor([[[10.0, 11.0], [20.0, 21.0]]])
    spread = regulator.spread(x, torch.arange(13), CLOCK)
    assert spread[0, 0].tolist() == [10, 10, 10, 11, 11, 11, 11, 20, 20, 20, 21, 21, 21]  # 6.89 frames a token
    assert torch.equal(regulator.spread(x[:, 1:], torch.arange(7, 13), CLOCK, start=1), spread[:, :, 7:])
    with pytest.raises(ValueError, match="at least 1 part"):
        ClockedTokens(1, parts=0)


@torch.no_grad()
def test_a_late_start_keeps_what_the_tokens_say():
    network, (tokens, lens) = causal(), tokens_of(11)
    mel_lens = CLOCK.frames_of_tokens(lens)
    said = network.denormalised(network.frames(tokens, lens, mel_lens))

    def away(**settings: float) -> float:
        mel = network.sample(tokens, lens, torch.zeros(1, dtype=torch.long), sampling=Sampling(3, **settings)).mel
        return float((mel - said).abs().mean())

    assert away(start=0.999, temperature=0.0) < 0.01 < away(start=0.5) < away(start=0.0)
    torch.testing.assert_close(Sampling(3, start=0.5).times(), 0.5 + Sampling(3).times() / 2)
    for start in (1.0, -0.1):
        with pytest.raises(ValueError, match=r"a start in \[0, 1\)"):
            Sampling(start=start)


def test_two_batches_are_put_behind_each_other_without_gaps():
    first, second = torch.tensor([[1, 2, -1], [3, 4, 5]]), torch.tensor([[6, -1], [7, 8]])
    tokens, lens = appended(first, torch.tensor([2, 3]), second, torch.tensor([1, 2]))
    assert tokens.tolist() == [[1, 2, 6, -1, -1], [3, 4, 5, 7, 8]]
    assert lens.tolist() == [3, 5]
    assert appended(first[:, :0], torch.tensor([0, 0]), second, torch.tensor([1, 2]))[0].tolist() == second.tolist()


def test_a_prompt_is_cut_off_each_row():
    mel = torch.tensor([[[1.0, 2, 3, 0]], [[4, 5, 6, 7]]])
    left, lens = cut_off(mel, torch.tensor([2, 1]), torch.tensor([3, 4]))
    assert left.tolist() == [[[3, 0, 0]], [[5, 6, 7]]]
    assert lens.tolist() == [1, 3]


# -- training ----------------------------------------------------------------------------------------------------------


def test_beginnings_are_whole_frames_of_the_share_and_nothing_else():
    x, lens = torch.ones(3, 1, 10), torch.tensor([10, 10, 5])
    told = beginnings(x, lens, torch.tensor([0.0, 0.8, 0.5]))[:, 0]
    assert told.sum(1).tolist() == [0, 8, 3]
    assert told[1].tolist() == [1] * 8 + [0] * 2


@BOTH
def test_what_is_dropped_is_told_nothing_of_tokens_voice_and_prompt(form: str):
    network = FORMS[form]()
    tokens, lens = tokens_of(5, 7)
    mel, mel_lens = mel_of(34, 48)
    seen: list[Conditions] = []
    forward, network.estimator.forward = network.estimator.forward, lambda *a: seen.append(a[2]) or forward(*a)
    network.loss(tokens, lens, mel, mel_lens, torch.Generator().manual_seed(0), training=FlowTraining(0.999, 1.0))
    assert all((part == 0).all() for part in seen[0])
    network.loss(tokens, lens, mel, mel_lens, torch.Generator().manual_seed(0), training=FlowTraining(0.0, 1.0))
    assert all((part != 0).any() for part in seen[1])


@BOTH
def test_a_few_steps_lower_the_loss(form: str):
    network = FORMS[form]().train()
    tokens, lens = tokens_of(4, 6)
    mel, mel_lens = mel_of(27, 41)
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)

    def loss() -> Tensor:
        return torch.stack(
            [network.loss(tokens, lens, mel, mel_lens, torch.Generator().manual_seed(s)) for s in range(2)]
        ).mean()

    before = loss().item()
    for _ in range(12):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert loss().item() < 0.8 * before


def test_a_new_dit_is_still():
    conditions = Conditions(torch.randn(1, M, 9), torch.randn(1, M), torch.randn(1, M, 9))
    v = DiT(M, 16, 1, 2, 32)(torch.randn(1, M, 9), torch.rand(1), conditions, None, torch.zeros(9, dtype=torch.long))
    assert (v == 0).all()


def test_parts_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="num_mels is that of every part"):
        TokenToMel(CLOCK, num_mels=8, estimator=DiT(16, 16, 1, 2, 32))
    with pytest.raises(ValueError, match="at least one mel frame"):
        TokenToMel(Clock(16_000, 100.0, 256), V, M, TokenEncoder(16, 2, 32, 1), estimator=DiT(M, 16, 1, 2, 32))
    with pytest.raises(ValueError, match="at least one step"):
        Sampling(steps=0)
    with pytest.raises(ValueError, match="shares lie in"):
        FlowTraining(drop=1.0)
    with pytest.raises(ValueError, match="multiples of 8"):
        released().estimator.__class__(M, (12,))
