"""Engines: continuous batching against transformers' own generate, and draws that belong to the prompt."""

import random

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessor,
    LogitsProcessorList,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from speechlm.engines.base import Engine, Generation, Prompt, Sampling, Target
from speechlm.engines.hugging_face import HuggingFaceEngine
from speechlm.engines.sampling import choose

TARGET = Target(first=40, count=23, stop=7)
GREEDY = Sampling(temperature=0)


def tiny_lm(kind: str = "llama") -> torch.nn.Module:
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
    if kind == "llama":
        model = LlamaForCausalLM(LlamaConfig(**sizes, **heads, initializer_range=0.3))
    else:
        model = Qwen2ForCausalLM(Qwen2Config(**sizes, **heads, initializer_range=0.3, tie_word_embeddings=True))
    return model.eval()


def prompts(count: int, seed: int = 0) -> list[Prompt]:
    draw = random.Random(seed)
    return [
        Prompt(f"p{n}", tuple(draw.choices(range(64), k=draw.randint(1, 12))), max_new=draw.randint(1, 20))
        for n in range(count)
    ]


def by_key(engine: Engine, work: list[Prompt], sampling: Sampling) -> dict[str, Generation]:
    found = list(engine.generate(work, sampling))
    assert len(found) == len(work)
    return {generation.key: generation for generation in found}


class Only(LogitsProcessor):
    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        allowed = torch.full_like(scores, -torch.inf)
        columns = [*range(TARGET.first, TARGET.first + TARGET.count), TARGET.stop]
        allowed[:, columns] = 0
        return scores + allowed


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_greedy_ids_are_those_of_transformers_generate(kind: str):
    model, work = tiny_lm(kind), prompts(40)
    ours = by_key(HuggingFaceEngine(model, TARGET, slots=5, max_length=64), work, GREEDY)
    for prompt in work:
        ids = torch.tensor([prompt.ids])
        settings = {
            "do_sample": False,
            "max_new_tokens": prompt.max_new,
            "eos_token_id": TARGET.stop,
            "pad_token_id": 0,
        }
        theirs = model.generate(
            ids, attention_mask=torch.ones_like(ids), logits_processor=LogitsProcessorList([Only()]), **settings
        )[0, len(prompt.ids) :].tolist()
        stopped = theirs[-1] == TARGET.stop
        expected = Generation(prompt.key, tuple(theirs[: len(theirs) - stopped]), "stop" if stopped else "length")
        assert ours[prompt.key] == expected
    assert {generation.finish for generation in ours.values()} == {"stop", "length"}  # both endings were seen


def test_draws_belong_to_the_prompt_not_to_the_batch():
    model, work = tiny_lm(), prompts(30)
    sampling = Sampling(temperature=1.0, top_p=0.95, seed=3)
    few = by_key(HuggingFaceEngine(model, TARGET, slots=2, max_length=64), work, sampling)
    many = by_key(HuggingFaceEngine(model, TARGET, slots=16, max_length=64), work[::-1], sampling)
    assert few == many
    other = by_key(HuggingFaceEngine(model, TARGET, slots=16, max_length=64), work, Sampling(1.0, 0, 0.95, seed=4))
    assert few != other


def test_the_end_waits_for_the_shortest_length_asked_for():
    work = [prompt._replace(max_new=12, min_new=12) for prompt in prompts(10)]
    found = by_key(HuggingFaceEngine(tiny_lm(), TARGET, slots=3, max_length=64), work, Sampling())
    assert {len(generation.ids) for generation in found.values()} == {12}


def test_nothing_but_the_target_is_ever_generated():
    work = prompts(50)
    found = by_key(HuggingFaceEngine(tiny_lm(), TARGET, slots=8, max_length=64), work, Sampling(temperature=5.0))
    assert all(TARGET.first <= i < TARGET.first + TARGET.count for g in found.values() for i in g.ids)


def test_prompts_are_drawn_as_room_appears():
    drawn: list[int] = []

    def endless():
        for n in range(10_000):
            drawn.append(n)
            yield Prompt(str(n), (1, 2), max_new=5)

    generations = HuggingFaceEngine(tiny_lm(), TARGET, slots=4, max_length=64).generate(endless(), Sampling())
    for _ in range(20):
        next(generations)
    assert len(drawn) <= 20 + 2 * 4


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        (Prompt("a", (), 5), "is empty"),
        (Prompt("a", (64,), 5), r"has id 64, outside \[0, 64\)"),
        (Prompt("a", (-1, 3), 5), "has id -1"),
        (Prompt("a", (1,), 60), "has 1 ids and may grow by 60"),
        (Prompt("a", (1,), 3, min_new=4), "4 to 3 new ids"),
    ],
)
def test_what_an_engine_could_not_survive_is_refused(prompt: Prompt, said: str):
    engine = HuggingFaceEngine(tiny_lm(), TARGET, slots=2, max_length=60)
    with pytest.raises(ValueError, match=said):
        list(engine.generate([prompt], GREEDY))


def test_a_target_outside_the_model_is_refused():
    with pytest.raises(ValueError, match="reach to 64, the model's vocabulary has 64"):
        HuggingFaceEngine(tiny_lm(), Target(60, 5, 7), max_length=64)


# -- drawing ---------------------------------------------------------------------------------------------------------------


def test_draws_follow_the_probabilities():
    logits = torch.log(torch.tensor([[0.1, 0.6, 0.3]])).expand(30_000, -1)
    u = torch.rand(30_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shares = torch.bincount(choose(logits, u, Sampling()), minlength=3) / 30_000
    assert shares.tolist() == pytest.approx([0.1, 0.6, 0.3], abs=0.01)
    nucleus = torch.bincount(choose(logits, u, Sampling(top_p=0.7)), minlength=3) / 30_000
    assert nucleus.tolist() == pytest.approx([0, 2 / 3, 1 / 3], abs=0.01)
    top = torch.bincount(choose(logits, u, Sampling(top_k=1)), minlength=3)
    assert top.tolist() == [0, 30_000, 0]


def test_the_ends_of_the_interval_never_draw_what_is_impossible():
    logits = torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf]]).expand(2, -1)
    u = torch.tensor([0.0, 1.0], dtype=torch.float64)
    for sampling in (Sampling(), Sampling(top_p=0.999), Sampling(top_k=4)):
        assert set(choose(logits, u, sampling).tolist()) <= {1, 2}


@pytest.mark.parametrize("bad", [{"temperature": -1}, {"top_k": -1}, {"top_p": 0}, {"top_p": 1.1}])
def test_sampling_out_of_range_is_refused(bad: dict[str, float]):
    with pytest.raises(ValueError, match="sampling needs"):
        Sampling(**bad)


def test_a_model_without_separate_positions_is_served_too():
    torch.manual_seed(0)
    gpt = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64)).eval()
    assert by_key(HuggingFaceEngine(gpt, TARGET, slots=3, max_length=64), prompts(6), GREEDY)
