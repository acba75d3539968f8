"""Nothing passes from one document of a row to another, whichever attention computes it."""

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask

from speechlm.nn.document_attention import Attention, choose, document_mask
from speechlm.nn.packed_lm import PackedLM
from tests.tiny_lm import CONFIGS, VOCAB, part, random_rows, tiny_stage

pytestmark = pytest.mark.filterwarnings("ignore:.*flex_attention called without.*")
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="FlexAttention has no backward pass on a CPU")


@pytest.fixture(params=CONFIGS)
def model(request: pytest.FixtureRequest, tmp_path) -> PackedLM:
    return tiny_stage(tmp_path, request.param, tied=False).eval().model


@pytest.mark.parametrize("length", [24, 300, 384])
@torch.no_grad()
def test_flex_attention_and_the_dense_mask_give_the_same(model: PackedLM, length: int):
    batch = random_rows(3, length)
    logits = {}
    for attention in ("sdpa", "flex"):
        model.attention = attention
        logits[attention] = model.logits(batch.ids, batch.doc_ids, batch.position_ids)
    torch.testing.assert_close(logits["flex"], logits["sdpa"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("attention", ["sdpa", "flex"])
@torch.no_grad()
def test_another_document_never_changes_a_document(model: PackedLM, attention: Attention):
    model.attention = attention
    batch = random_rows(4)
    before = model.logits(batch.ids, batch.doc_ids, batch.position_ids)
    for changed in (-1, 0, 1, 2):
        mine = batch.doc_ids == changed
        other = torch.where(mine, (batch.ids + 1) % len(VOCAB), batch.ids)
        after = model.logits(other, batch.doc_ids, batch.position_ids)
        torch.testing.assert_close(after[~mine], before[~mine], rtol=0, atol=0)
        assert not torch.allclose(after[mine], before[mine])


@torch.no_grad()
def test_a_packed_document_is_as_if_it_were_alone(model: PackedLM):
    batch = random_rows(4)
    packed = model.logits(batch.ids, batch.doc_ids, batch.position_ids)
    for row in range(4):
        for doc in range(3):
            mine = batch.doc_ids[row] == doc
            alone = model.lm(input_ids=batch.ids[row, mine][None]).logits[0]  # transformers' own causal mask
            torch.testing.assert_close(packed[row, mine], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length", [100, 128, 1000])
def test_the_blocks_are_those_that_looking_at_every_pair_finds(length: int):
    generator = torch.Generator().manual_seed(length)
    docs = (torch.rand(3, length, generator=generator) < 0.01).long().cumsum(1)
    doc_ids = docs.masked_fill(torch.arange(length) >= torch.tensor([[length], [length - 3], [length // 2]]), -1)
    ours = document_mask(doc_ids, "flex")
    padded = doc_ids.masked_fill(doc_ids < 0, length)
    theirs = create_block_mask(
        lambda b, h, q, k: (q >= k) & (padded[b, q] == padded[b, k]), 3, 1, length, length, device="cpu"
    )
    assert torch.equal(ours.to_dense(), theirs.to_dense())
    assert torch.equal(ours.full_kv_num_blocks, theirs.full_kv_num_blocks)
    assert torch.equal(ours.kv_num_blocks, theirs.kv_num_blocks)


@CUDA
def test_flex_attention_and_the_dense_mask_give_the_same_gradients(model: PackedLM):
    model.cuda()
    batch = random_rows(2, 256)
    inputs = [x.cuda() for x in (batch.ids, batch.loss_mask, batch.doc_ids, batch.position_ids)]
    gradients = {}
    for attention in ("sdpa", "flex"):
        model.attention = attention
        gradients[attention] = torch.autograd.grad(model(*inputs).losses.mean(), list(model.parameters()))
    torch.testing.assert_close(gradients["flex"], gradients["sdpa"], rtol=1e-3, atol=1e-4)


def test_auto_is_flex_where_it_is_fast_and_else_dense():
    assert choose("auto", torch.device("cpu")) == "sdpa"
    assert choose("auto", torch.device("cuda")) == "flex"
    with pytest.raises(ValueError, match="'auto', 'sdpa' or 'flex', got 'eager'"):
        choose("eager", torch.device("cpu"))  # type: ignore[arg-type]


def test_rows_of_a_batch_do_not_know_each_other(model: PackedLM):
    batch = random_rows(4)
    together = model(batch.ids, batch.loss_mask, batch.doc_ids, batch.position_ids)
    for row in range(4):
        one = part(batch, slice(row, row + 1))
        alone = model(one.ids, one.loss_mask, one.doc_ids, one.position_ids)
        torch.testing.assert_close(alone.losses, together.losses[together.rows == row], rtol=1e-4, atol=1e-5)
