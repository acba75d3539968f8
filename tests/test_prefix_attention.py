"""A continuation sees its beginning and itself, whichever attention computes it."""

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import Qwen2Config, Qwen2ForCausalLM

from speechlm.nn.prefix_attention import Node, PrefixAttention, nodes_of, prefix_mask

pytestmark = pytest.mark.filterwarnings("ignore:.*flex_attention called without.*")
WAYS: tuple[PrefixAttention, ...] = ("nodes", "sdpa", "flex")


def model() -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=512,
        )
    ).eval()  # fmt: skip


def tree(shared: int, own: list[int], first: int = 0) -> tuple[list[int], list[int]]:
    """How far every position is seen, and its depth."""
    end = first + shared + sum(own)
    until, depth, begin = [end] * shared, list(range(shared)), first + shared
    for length in own:
        until += [begin + length] * length
        depth += range(shared, shared + length)
        begin += length
    return until, depth


def row() -> tuple[Tensor, Tensor]:
    """A tree of three, a lone document, a tree of two; three blocks of FlexAttention."""
    until, depth = tree(100, [30, 1, 60])
    for shared, own in ((40, []), (9, [30, 75])):
        more, deep = tree(shared, own, len(until))
        until, depth = until + more, depth + deep
    return torch.tensor(until), torch.tensor(depth)


@torch.no_grad()
def states(lm: Qwen2ForCausalLM, ids: Tensor, until: Tensor, depth: Tensor, attention: PrefixAttention) -> Tensor:
    mask = prefix_mask(lm, until, attention)
    out = lm.base_model(input_ids=ids[None], attention_mask=mask, position_ids=depth[None], use_cache=False)
    return out.last_hidden_state[0]


@pytest.mark.parametrize("attention", WAYS)
def test_every_branch_is_as_if_it_alone_followed_the_beginning(attention: PrefixAttention) -> None:
    lm, (until, depth) = model(), row()
    ids = torch.randint(0, 50, (len(until),), generator=torch.Generator().manual_seed(0))
    found = states(lm, ids, until, depth, attention)
    branches = [(100, 130), (130, 131), (131, 191)]
    for root, ends in (((0, 100), branches), ((191, 231), [(231, 231)]), ((231, 240), [(240, 270), (270, 345)])):
        for begin, end in ends:
            places = torch.cat([torch.arange(*root), torch.arange(begin, end)])
            lm.set_attn_implementation("sdpa")
            with torch.no_grad():
                alone = lm.base_model(input_ids=ids[places][None]).last_hidden_state[0]
            torch.testing.assert_close(found[places], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("attention", WAYS)
def test_another_branch_never_changes_a_branch(attention: PrefixAttention) -> None:
    lm, (until, depth) = model(), row()
    ids = torch.randint(0, 50, (len(until),), generator=torch.Generator().manual_seed(1))
    before = states(lm, ids, until, depth, attention)
    for begin, end in ((100, 130), (131, 191), (231, 345)):
        other = ids.clone()
        other[begin:end] = (other[begin:end] + 1) % 50
        after = states(lm, other, until, depth, attention)
        same = torch.ones(len(ids), dtype=torch.bool)
        same[begin:end] = False
        torch.testing.assert_close(after[same], before[same], rtol=0, atol=0)
        assert not torch.allclose(after[~same], before[~same])


def test_nodes_know_what_they_go_on_from() -> None:
    until, _ = tree(3, [2, 1])
    assert nodes_of(torch.tensor(until)) == [Node(0, 3, ()), Node(3, 5, ((0, 3),)), Node(5, 6, ((0, 3),))]
    deep = torch.tensor(
        [8, 8, 6, 6, 5, 6, 8, 8, 10, 10]
    )  # a continuation that has continuations itself, and another document
    assert [node.before for node in nodes_of(deep)] == [
        (),
        ((0, 2),),
        ((0, 2), (2, 4)),
        ((0, 2), (2, 4)),
        ((0, 2),),
        (),
    ]


@pytest.mark.parametrize("length", [100, 256, 345])
def test_the_blocks_are_those_that_looking_at_every_pair_finds(length: int) -> None:
    until = row()[0][:length].clamp(max=length)
    ours = prefix_mask(model(), until, "flex")
    theirs = create_block_mask(lambda b, h, q, k: (q >= k) & (q < until[k]), 1, 1, length, length, device="cpu")
    assert isinstance(ours, BlockMask)
    assert torch.equal(ours.to_dense(), theirs.to_dense())
    assert torch.equal(ours.full_kv_num_blocks, theirs.full_kv_num_blocks)


def test_an_attention_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="'nodes', got 'varlen'"):
        prefix_mask(model(), row()[0], "varlen")  # type: ignore[arg-type]
