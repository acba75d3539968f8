"""Likelihoods of pairs, packed with document masks, against one sequence at a time: the same scores, and how much faster.

    OMP_NUM_THREADS=1 python benchmarks/evaluate.py [--lm FOLDER] [--pairs 64] [--rounds 3]

Baseline: transformers' own forward of one sequence with all its logits, as a metric is usually written, in the same run.
Two shapes: words (sWUGGY) and stories (StoryCloze). Process time, best of the rounds, which alternate.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from speechlm.evals.likelihood import PackedLikelihood
from speechlm.evals.parts import Scorable
from speechlm.nn.causal_lm import NewRows, extend_vocabulary
from speechlm.provenance import git_state
from speechlm.tokens.vocab import Vocab

SHAPES = {"words": (0, (6, 18)), "stories": ((90, 140), (20, 40))}  # speech ids of the context and of an ending
NUM_SPEECH = 16_384


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
    """Both sides of every pair."""
    context, ending = SHAPES[shape]
    rng = np.random.default_rng(0)
    made = []
    for _ in range(count):
        before = [vocab.control("<|begin_of_audio|>")]
        before += (
            (vocab.speech_offset + rng.integers(0, NUM_SPEECH, rng.integers(*context))).tolist() if context else []
        )
        for _ in range(2):
            after = (vocab.speech_offset + rng.integers(0, NUM_SPEECH, rng.integers(*ending))).tolist()
            made.append(Scorable((*before, *after), len(before)))
    return made


@torch.inference_mode()
def one_at_a_time(lm: PreTrainedModel, sequences: list[Scorable]) -> list[float]:
    """Sum of the ending's losses of each."""
    found = []
    for one in sequences:
        ids = torch.tensor([one.ids])
        logits = lm(input_ids=ids).logits[0, :-1].float()
        losses = F.cross_entropy(logits, ids[0, 1:], reduction="none")
        found.append(float(losses[one.ending - 1 :].double().sum()))
    return found


def timed(work: Callable[[], list[float]]) -> tuple[float, list[float]]:
    """Seconds of this process, and what came."""
    begin = time.process_time()
    found = work()
    return time.process_time() - begin, found


def main() -> None:
    """Print one JSON object per shape."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--lm", help="folder of a causal LM; a small random one by default")
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    lm, vocab = extended(AutoModelForCausalLM.from_pretrained(given.lm, dtype=torch.float32) if given.lm else small())
    packed = PackedLikelihood(lm, vocab)
    for shape in SHAPES:
        asked = pairs(shape, given.pairs, vocab)
        plain_sec, packed_sec = [], []
        for _ in range(given.rounds):
            lm.set_attn_implementation("sdpa")
            seconds, plain = timed(lambda asked=asked: one_at_a_time(lm, asked))  # type: ignore[misc]
            plain_sec.append(seconds)
            seconds, ours = timed(lambda asked=asked: [one.ending.nll for one in packed(asked)])  # type: ignore[misc]
            packed_sec.append(seconds)
        differ = float(np.max(np.abs(np.array(ours) / np.array(plain) - 1)))
        sides = [[p < n for p, n in zip(s[::2], s[1::2], strict=True)] for s in (plain, ours)]
        print(
            json.dumps(
                {
                    "shape": shape,
                    "pairs": given.pairs,
                    "ids": sum(len(one.ids) for one in asked),
                    "one_at_a_time_sec": round(min(plain_sec), 3),
                    "packed_sec": round(min(packed_sec), 3),
                    "ratio": round(min(plain_sec) / min(packed_sec), 2),
                    "largest_relative_difference": differ,
                    "same_choices": sides[0] == sides[1],
                    "parameters_million": round(sum(p.numel() for p in lm.parameters()) / 1e6, 1),
                    "commit": (git_state(Path(__file__).resolve().parent) or {}).get("commit", "")[:7],
                    "torch": torch.__version__,
                }
            )
        )


if __name__ == "__main__":
    main()
