"""Nothing passes from one document of a row to another, whichever attention computes it."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask

from speechlm.nn import document_attention
from speechlm.nn.document_attention import Attention, choose, document_mask
from speechlm.nn.packed_lm import PackedLM
from tests.tiny_lm import CONFIGS, VOCAB, part, random_rows, tiny_stage

pytestmark = pytest.mark.filterwarnings("ignore:.*flex_attention called without.*")
WAYS: tuple[Attention, ...] = ("sdpa", "flex", "varlen")
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="FlexAttention has no backward pass on a CPU")


@pytest.fixture(params=CONFIGS)
def model(request: pytest.FixtureRequest, tmp_path) -> PackedLM:
    return tiny_stage(tmp_path, request.param, tied=False).eval().model


@pytest.mark.parametrize("length", [24, 300, 384])
@torch.no_grad()
def test_flex_attention_and_documents_one_by_one_give_what_the_dense_mask_gives(model: PackedLM, length: int):
    batch = random_rows(3, length)
    logits = {}
    for attention in WAYS:
        model.attention = attention
        logits[attention] = model.logits(batch.ids, batch.doc_ids, batch.position_ids)
    torch.testing.assert_close(logits["flex"], logits["sdpa"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits["varlen"], logits["sdpa"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("attention", WAYS)
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


def test_documents_one_by_one_have_the_gradients_of_the_dense_mask(model: PackedLM):
    batch = random_rows(3, 60)
    gradients = {}
    for attention in ("sdpa", "varlen"):
        model.attention = attention
        out = model(batch.ids, batch.loss_mask, batch.doc_ids, batch.position_ids)
        gradients[attention] = torch.autograd.grad(out.losses.mean(), list(model.parameters()))
    torch.testing.assert_close(gradients["varlen"], gradients["sdpa"], rtol=1e-4, atol=1e-6)


def test_where_documents_begin_has_one_shape_for_many_batches():
    batches = [random_rows(4, 60, seed) for seed in range(5)]
    begins = [document_mask(batch.doc_ids, "varlen").flatten() for batch in batches]
    assert {len(one) for one in begins} == {64}
    for batch, one in zip(batches, begins, strict=True):
        flat = batch.doc_ids + 10 * torch.arange(4)[:, None]
        changes = (flat.flatten()[1:] != flat.flatten()[:-1]).nonzero()[:, 0] + 1
        assert one[: len(changes) + 1].tolist() == [0, *changes.tolist()]
        assert one[len(changes) + 1 :].unique().tolist() == [240]
    full = torch.arange(100)[None].expand(2, 100)  # as many documents as positions
    assert document_mask(full, "varlen").flatten().tolist() == list(range(200)) + [200] * 56


@pytest.mark.parametrize("form", ["2.10", "2.12"])
def test_the_kernel_of_any_torch_is_told_the_same(form: str, model: PackedLM, monkeypatch: pytest.MonkeyPatch):
    """The kernel runs on a GPU alone; here a plain loop with its signature stands in its place."""

    def attend(q: Tensor, k: Tensor, v: Tensor, begins: Tensor, scale: float | None, groups: bool) -> Tensor:
        parts = []
        for a, b in itertools.pairwise(begins.tolist()):
            own = [x[a:b].transpose(0, 1)[None] for x in (q, k, v)]
            parts.append(F.scaled_dot_product_attention(*own, is_causal=True, scale=scale, enable_gqa=groups)[0])
        return torch.cat(parts, 1).transpose(0, 1)

    def old(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, *, is_causal=False, scale=None):
        assert is_causal and max_q == 60
        return attend(q, k, v, cu_seq_q, scale, False)

    def new(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1), enable_gqa=False):
        assert window_size == (-1, 0) and max_k == 60
        return attend(q, k, v, cu_seq_q, scale, enable_gqa)

    batch = random_rows(3, 60)
    model.attention = "varlen"
    expected = model.logits(batch.ids, batch.doc_ids, batch.position_ids)
    monkeypatch.setattr(document_attention, "VARLEN_WINDOW", form == "2.12")
    monkeypatch.setattr(document_attention, "VARLEN_GROUPS", form == "2.12")
    monkeypatch.setattr(document_attention.varlen, "varlen_attn", new if form == "2.12" else old)
    monkeypatch.setattr(document_attention, "_one_call_each", document_attention._one_kernel)
    torch.testing.assert_close(model.logits(batch.ids, batch.doc_ids, batch.position_ids), expected)


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


def test_auto_is_flex_where_it_is_fast_and_else_documents_one_by_one():
    assert choose("auto", torch.device("cpu")) == "varlen"
    assert choose("auto", torch.device("cuda")) == "flex"
    with pytest.raises(ValueError, match="'sdpa', 'flex' or 'varlen', got 'eager'"):
        choose("eager", torch.device("cpu"))  # type: ignore[arg-type]


def test_rows_of_a_batch_do_not_know_each_other(model: PackedLM):
    batch = random_rows(4)
    together = model(batch.ids, batch.loss_mask, batch.doc_ids, batch.position_ids)
    for row in range(4):
        one = part(batch, slice(row, row + 1))
        alone = model(one.ids, one.loss_mask, one.doc_ids, one.position_ids)
        torch.testing.assert_close(alone.losses, together.losses[together.rows == row], rtol=1e-4, atol=1e-5)
