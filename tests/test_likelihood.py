"""Likelihoods of many sequences at once are those of each alone, and scores are those of the published rule."""

import math
from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from speechlm.engines.base import Prompt, Sampling, Target
from speechlm.engines.hugging_face import HuggingFaceEngine
from speechlm.evals.likelihood import PackedLikelihood, trees
from speechlm.evals.pairs import nll, preferred
from speechlm.evals.parts import Scorable
from speechlm.tokens.vocab import Vocab

VOCAB = Vocab(num_text=40, num_speech=30)


def model(seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=False,
    )  # fmt: skip
    return Qwen2ForCausalLM(config).eval()


def sequences(count: int, seed: int = 0) -> list[Scorable]:
    """A control token, text, a control token, speech; the speech is the ending."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        text = rng.integers(0, 40, rng.integers(1, 9)).tolist()
        speech = (VOCAB.speech_offset + rng.integers(0, 30, rng.integers(1, 20))).tolist()
        begin = [VOCAB.control("<|user|>"), *text, VOCAB.control("<|begin_of_audio|>")]
        made.append(Scorable((*begin, *speech), len(begin)))
    return made


@torch.no_grad()
def published(lm: PreTrainedModel, sequence: Scorable, masked: bool, per_token: bool) -> float:
    """slamkit's rule on one sequence: cross-entropy of the shifted ids under a mask, other ids at minus infinity, mean or sum."""
    ids = torch.tensor([sequence.ids])
    logits = lm(input_ids=ids).logits[:, :-1].clone()
    if masked:
        ignored = [i for i in range(logits.shape[-1]) if not VOCAB.speech_offset <= i < len(VOCAB)]
        logits[:, :, ignored] = float("-inf")
    losses = F.cross_entropy(logits[0], ids[0, 1:], reduction="none")
    mask = torch.arange(1, ids.shape[1]) >= sequence.ending
    total = torch.where(mask, losses, 0.0).sum()
    return float(total / mask.sum() if per_token else total)


@pytest.mark.parametrize("row", [1, 64, 4096])
def test_packed_and_alone_are_the_same(row: int) -> None:
    lm, asked = model(), sequences(25)
    alone = [PackedLikelihood(lm, VOCAB)([one])[0] for one in asked]
    for one, together in zip(alone, PackedLikelihood(lm, VOCAB, row=row, chunk=7)(asked), strict=True):
        assert together.whole.count == one.whole.count and together.ending.count == one.ending.count
        assert together.whole.plain() == pytest.approx(one.whole.plain(), rel=1e-5)
        assert together.ending.plain() == pytest.approx(one.ending.plain(), rel=1e-5)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("per_token", [False, True])
def test_scores_are_those_of_the_published_rule(masked: bool, per_token: bool) -> None:
    lm, asked = model().double(), sequences(20)
    for one, found in zip(asked, PackedLikelihood(lm, VOCAB)(asked), strict=True):
        expected = published(lm, one, masked, per_token)
        assert nll(found.ending.plain(), per_token, masked) == pytest.approx(expected, rel=1e-6)


def test_the_same_scores_give_the_published_accuracy() -> None:
    rng = np.random.default_rng(0)
    positive, negative = (-np.round(rng.normal(size=500), 1) for _ in range(2))  # many ties
    result = np.zeros(500)  # likelihoods, as slamkit compares them
    result[-positive > -negative], result[positive == negative] = 1, 0.5
    ours = [preferred(p, n) for p, n in zip(positive, negative, strict=True)]
    assert np.mean(ours) == pytest.approx(result.mean(), abs=1e-6) and ours == result.tolist()
    assert 0.5 in ours and 0.0 in ours and 1.0 in ours


def test_a_model_that_knows_nothing_ties_whatever_the_lengths() -> None:
    lm = model()
    torch.nn.init.zeros_(lm.get_output_embeddings().weight)
    found = PackedLikelihood(lm, VOCAB)(sequences(30))
    for masked, logarithm in ((False, math.log(96)), (True, math.log(30))):
        means = [nll(one.ending.plain(), True, masked) for one in found]
        assert len(set(means)) == 1 and means[0] == pytest.approx(logarithm, rel=1e-6)
        assert {preferred(a, b) for a in means for b in means} == {0.5}


def test_control_tokens_are_given_and_never_scored() -> None:
    one = sequences(1)[0]
    (found,) = PackedLikelihood(model(), VOCAB)([one])
    controls = sum(VOCAB.num_text <= i < VOCAB.speech_offset for i in one.ids)
    assert found.whole.count == len(one.ids) - controls and found.ending.count == len(one.ids) - one.ending


def test_a_sequence_without_anything_to_score_counts_nothing() -> None:
    bare = Scorable((VOCAB.control("<|user|>"), VOCAB.control("<|begin_of_audio|>")), 1)
    found = PackedLikelihood(model(), VOCAB)([bare, *sequences(2)])
    assert found[0].whole.count == found[0].ending.count == 0 and found[1].ending.count


def test_a_model_that_is_not_finite_gives_no_finite_score() -> None:
    lm = model()
    torch.nn.init.constant_(lm.get_output_embeddings().weight, float("nan"))
    (found,) = PackedLikelihood(lm, VOCAB)(sequences(1))
    assert math.isnan(found.ending.nll)


def test_banned_ids_are_never_generated_and_the_others_are_as_likely_as_before() -> None:
    lm, target = model(), Target(0, 40, 41)
    prompt = [Prompt("a", (1, 2, 3), 30)]
    plain = next(iter(HuggingFaceEngine(lm, target, 1, 64).generate(prompt, Sampling(temperature=0.0))))
    banned = sorted(set(plain.ids))
    other = next(iter(HuggingFaceEngine(lm, target, 1, 64, banned).generate(prompt, Sampling(temperature=0.0))))
    assert plain.ids and other.ids and not set(other.ids) & set(banned)
    unused = sorted(set(range(40)) - set(plain.ids))
    same = next(iter(HuggingFaceEngine(lm, target, 1, 64, unused).generate(prompt, Sampling(temperature=0.0))))
    assert same.ids == plain.ids


# --- what sequences share is computed once


def stories(count: int, seed: int = 0, context: int = 40) -> list[Scorable]:
    """Two endings that begin alike behind every context; of some pairs one alone has the control token between them."""
    rng = np.random.default_rng(seed)
    made = []
    for n in range(count):
        before = [VOCAB.control("<|user|>"), *rng.integers(0, 40, rng.integers(1, context)).tolist()]
        same = rng.integers(0, 30, 4)
        for side in range(2):
            speech = np.concatenate([same, rng.integers(0, 30, rng.integers(0, 12))])[: 4 if n == 1 else None]
            opening = [*before, VOCAB.control("<|begin_of_audio|>")] if side or n % 3 else before
            made.append(Scorable((*opening, *(VOCAB.speech_offset + speech).tolist()), len(opening)))
    return made


@pytest.mark.parametrize("attention", ["nodes", "sdpa", "flex"])
@pytest.mark.parametrize("row", [1, 100, 4096])
@pytest.mark.filterwarnings("ignore:.*flex_attention called without.*")
def test_scores_with_a_shared_beginning_are_those_of_each_sequence_alone(
    row: int, attention: Literal["nodes", "sdpa", "flex"]
) -> None:
    lm, asked = model(), stories(12)
    scorer = PackedLikelihood(lm, VOCAB, row=row, attention=attention, least_shared=1)
    if row > 1:
        assert sum(len(one.ids) for one in asked) > 1.5 * sum(len(made.ids) for made in scorer._rows(asked))
    found = scorer(asked)
    for one, ours in zip(asked, found, strict=True):
        alone = PackedLikelihood(lm, VOCAB)([one])[0]
        for span in ("whole", "ending"):
            got, expected = getattr(ours, span), getattr(alone, span)
            assert got.count == expected.count
            assert (got.nll, got.masked) == pytest.approx((expected.nll, expected.masked), rel=1e-5, abs=1e-6)
    for masked in (False, True):
        for one, ours in zip(asked, found, strict=True):
            assert nll(ours.ending.plain(), False, masked) == pytest.approx(published(lm, one, masked, False), rel=1e-5)


def test_sequences_come_together_where_that_saves_most() -> None:
    same, other = tuple(range(20)), tuple(range(50, 70))
    asked = [(*same, 1, 2), other, (*same, 3), (*same[:9], 99), (*other, 5), same, same]
    made = {tree.numbers: (tree.shared, tree.size) for tree in trees(asked, 4096, 8)}
    # the fourth shares nine ids only, for which the others would have to share nine instead of twenty
    assert made == {(5, 6, 0, 2): (20, 23), (3,): (10, 10), (1, 4): (20, 21)}
    assert all(len(tree.numbers) == 1 for tree in trees(asked, 4096, 21))
    assert max(tree.size for tree in trees(asked, 22, 8) if len(tree.numbers) > 1) <= 22


def test_the_same_sequence_twice_has_the_same_score_to_the_last_bit() -> None:
    asked = stories(6)
    found = PackedLikelihood(model(), VOCAB)([*asked, *asked])
    assert found[: len(asked)] == found[len(asked) :]


def test_a_head_with_a_bias_and_in_tiles_is_the_head() -> None:
    lm, asked = model().double(), sequences(9)
    lm.lm_head.bias = torch.nn.Parameter(torch.randn(96, dtype=torch.float64))
    scorer = PackedLikelihood(lm, VOCAB, chunk=5)
    scorer.tile = 7
    for one, found in zip(asked, scorer(asked), strict=True):
        for masked in (False, True):
            assert nll(found.ending.plain(), True, masked) == pytest.approx(published(lm, one, masked, True), rel=1e-6)


def test_text_is_written_as_before_once_a_model_has_scored() -> None:
    lm, target = model(), Target(0, 40, 41)
    prompts = [Prompt(name, ids, 12) for name, ids in (("a", (1, 2, 3)), ("b", (7, 8)))]

    def written() -> dict[str, tuple[int, ...]]:
        made = HuggingFaceEngine(lm, target, 2, 64).generate(prompts, Sampling(temperature=0.0))
        return {one.key: one.ids for one in made}

    before = written()
    PackedLikelihood(lm, VOCAB)(stories(3))
    assert written() == before
