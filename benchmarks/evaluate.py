"""Likelihoods of pairs, packed and with what they share computed once, against one pair at a time: same scores, how much faster.

    OMP_NUM_THREADS=1 python benchmarks/evaluate.py [--lm FOLDER] [--pairs 48] [--rounds 3]

Baselines, in the same run: transformers' own forward with all its logits, once for each side and once for both sides padded;
the faster of the two counts. `all` gives what a record holds, as a metric is usually written: cross-entropy of the logits, and
again with the other modality at minus infinity; `plain` is without that second number, less than what we give.

Shapes: words (sWUGGY), sentences (sBLIMP), stories in speech, and stories as `StoryCloze` asks for them by default, in all four
modes. Process time, best of the rounds, which alternate.
"""

import argparse
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from speechlm.evals.likelihood import PackedLikelihood
from speechlm.evals.parts import Scorable
from speechlm.nn.causal_lm import NewRows, extend_vocabulary
from speechlm.provenance import git_state
from speechlm.tokens.vocab import Vocab

#: modes; ids of a context and of an ending, in speech and in text. 12.5 speech tokens and 3.5 text tokens a second.
SHAPES: dict[str, tuple[tuple[str, ...], dict[str, tuple[int, int]]]] = {
    "words": (("-S",), {"ending S": (6, 18)}),
    "sentences": (("-S",), {"ending S": (20, 50)}),
    "stories S->S": (("SS",), {"context S": (90, 140), "ending S": (20, 40)}),
    "stories in four modes": (
        ("SS", "ST", "TS", "TT"),
        {"context S": (90, 140), "ending S": (20, 40), "context T": (30, 45), "ending T": (6, 12)},
    ),
}
NUM_SPEECH = 16_384
Scores = list[list[float]]  # of each sequence: all among all ids, among its own kind's; the ending's likewise


def small() -> PreTrainedModel:
    """A model of the size that a laptop trains."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=4096, hidden_size=128, intermediate_size=352, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=1024, tie_word_embeddings=True,
    )  # fmt: skip
    return Qwen2ForCausalLM(config).eval()


def extended(lm: PreTrainedModel) -> tuple[PreTrainedModel, Vocab]:
    """With ids for speech."""
    vocab = Vocab(lm.config.vocab_size, NUM_SPEECH)
    extend_vocabulary(lm, vocab.num_text, len(vocab), NewRows())
    return lm.eval(), vocab


def pairs(shape: str, count: int, vocab: Vocab) -> list[Scorable]:
    """Both sides of every pair, in every mode, as `Pairs` writes them."""
    modes, lengths = SHAPES[shape]
    rng = np.random.default_rng(0)
    made = []
    for _ in range(count):
        said = {
            (name, side): _drawn(name[-1], rng.integers(*bounds), rng, vocab)
            for name, bounds in lengths.items()
            for side in range(2)
        }
        for mode, side in itertools.product(modes, range(2)):
            context = said[f"context {mode[0]}", 0] if mode[0] != "-" else []
            made.append(_joined(mode, context, said[f"ending {mode[1]}", side], vocab))
    return made


def _drawn(kind: str, length: int, rng: np.random.Generator, vocab: Vocab) -> list[int]:
    offset, size = (vocab.speech_offset, NUM_SPEECH) if kind == "S" else (0, vocab.num_text)
    return [int(i) for i in offset + rng.integers(0, size, length)]


def _joined(mode: str, context: list[int], ending: list[int], vocab: Vocab) -> Scorable:
    begin, end = ([vocab.control(f"<|{name}_of_audio|>")] for name in ("begin", "end"))
    before = {"-": begin, "S": begin + context, "T": context}[mode[0]]
    before = before + {"ST": end, "TS": begin}.get(mode, [])
    return Scorable((*before, *ending, *(end if mode[1] == "S" else [])), len(before))


@torch.inference_mode()
def one_pair_at_a_time(
    lm: PreTrainedModel, sequences: list[Scorable], vocab: Vocab, together: bool, masked: bool
) -> Scores:
    """Scores of both sides of a pair, in one call of two padded rows or in two calls; then of the next."""
    found: Scores = []
    for begin in range(0, len(sequences), 2):
        for rows in [sequences[begin : begin + 2]] if together else [[one] for one in sequences[begin : begin + 2]]:
            longest = max(len(one.ids) for one in rows)
            ids = torch.tensor([[*one.ids, *[0] * (longest - len(one.ids))] for one in rows])
            real = torch.tensor([[1] * len(one.ids) + [0] * (longest - len(one.ids)) for one in rows])
            logits = lm(input_ids=ids, attention_mask=real).logits
            found += [_scores(logits[n, : len(one.ids)], one, vocab, masked) for n, one in enumerate(rows)]
    return found


def _scores(logits: Tensor, one: Scorable, vocab: Vocab, masked: bool) -> list[float]:
    logits, targets = logits[:-1].float(), torch.tensor(one.ids[1:])
    places = torch.arange(1, len(one.ids))
    counts = vocab.is_speech(targets) | vocab.is_text(targets)
    losses = [F.cross_entropy(logits, targets, reduction="none")]
    if masked:
        losses.append(_among_their_own(logits, targets, vocab))
    return [
        float(loss[chosen].double().sum()) for chosen in (counts, counts & (places >= one.ending)) for loss in losses
    ]


def _among_their_own(logits: Tensor, targets: Tensor, vocab: Vocab) -> Tensor:
    """Losses with the ids of the other modality at minus infinity."""
    own, speech = torch.full_like(logits, -torch.inf), vocab.is_speech(targets)
    for rows, ids in (
        (speech, slice(vocab.speech_offset, len(vocab))),
        (vocab.is_text(targets), slice(0, vocab.num_text)),
    ):
        own[rows, ids] = logits[rows, ids]
    return F.cross_entropy(own, targets, reduction="none")


def timed(work: Callable[[], Scores]) -> tuple[float, Scores]:
    """Seconds of this process, and what came."""
    begin = time.process_time()
    found = work()
    return time.process_time() - begin, found


def measure(lm: PreTrainedModel, vocab: Vocab, asked: list[Scorable], rounds: int) -> dict[str, Any]:
    """Seconds of each way, and how far its scores are from the baseline's."""
    scorer = PackedLikelihood(lm, vocab)
    seconds: dict[str, list[float]] = {}
    scores: dict[str, Scores] = {}

    def ours() -> Scores:
        return [[one.whole.nll, one.whole.masked, one.ending.nll, one.ending.masked] for one in scorer(asked)]

    ways: dict[str, Callable[[], Scores]] = {"packed": ours}
    for masked, together in itertools.product((True, False), repeat=2):
        name = f"{'all' if masked else 'plain'}, {'one padded call' if together else 'two calls'} a pair"
        ways[name] = lambda m=masked, t=together: one_pair_at_a_time(lm, asked, vocab, t, m)  # type: ignore[misc]
    for _, (name, work) in itertools.product(range(rounds), ways.items()):
        if name != "packed":
            lm.set_attn_implementation("sdpa")
        taken, scores[name] = timed(work)
        seconds.setdefault(name, []).append(taken)
    best = {name: min(values) for name, values in seconds.items()}
    theirs = scores["all, two calls a pair"]
    return {
        **{f"{name}, sec": round(value, 3) for name, value in best.items()},
        "ratio, all": round(min(v for n, v in best.items() if n.startswith("all")) / best["packed"], 2),
        "ratio, plain": round(min(v for n, v in best.items() if n.startswith("plain")) / best["packed"], 2),
        "largest_relative_difference": float(np.max(np.abs(np.array(scores["packed"]) / np.array(theirs) - 1))),
        "same_choices": list(_choices(scores["packed"])) == list(_choices(theirs)),
    }


def _choices(scores: Scores) -> Iterator[list[bool]]:
    """Of each pair, under each of its four numbers."""
    for one, other in zip(scores[::2], scores[1::2], strict=True):
        yield [a < b for a, b in zip(one, other, strict=True)]


def main() -> None:
    """Print one JSON object per shape."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--lm", help="folder of a causal LM; a small random one by default")
    parser.add_argument("--pairs", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    lm, vocab = extended(AutoModelForCausalLM.from_pretrained(given.lm, dtype=torch.float32) if given.lm else small())
    about = {
        "parameters_million": round(sum(p.numel() for p in lm.parameters()) / 1e6, 1),
        "vocabulary": len(vocab),
        "commit": (git_state(Path(__file__).resolve().parent) or {}).get("commit", "")[:7],
        "torch": torch.__version__,
    }
    for shape in SHAPES:
        asked = pairs(shape, given.pairs, vocab)
        size = {"shape": shape, "sequences": len(asked), "ids": sum(len(one.ids) for one in asked)}
        print(json.dumps({**size, **measure(lm, vocab, asked, given.rounds), **about}), flush=True)


if __name__ == "__main__":
    main()
