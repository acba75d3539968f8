"""Tokens per second of the engines against `transformers.generate` in static batches, in one run.

    python benchmarks/generate.py [--lengths sentences] [--prompts 256] [--batch 32] [--layers 12] [--device cpu]

A model of SmolLM2-135M's width with random weights and a vocabulary with 16,384 speech ids; prompts of text-to-token length and
numbers of new ids as texts have them: spans of a Poisson number of words (mean 10 words, about 38 ids), as in interleaving, or
whole sentences, which are read for speech corpora and replies, and are more ragged. Greedy on both sides. The usual
loop generates a batch until its longest member is done, with the same ids allowed (a bias on all others), and throws away what
is beyond each member's own length; both sides are credited with the ids that were asked for, and must give the same ones.

Said twice: by the clock, and by the processor's time, which other work on the machine disturbs less. On a CPU it also says where
the engine's time goes: the model's layers at a single position, the head, filling slots, and all else.
"""

import argparse
import json
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LogitsProcessor, LogitsProcessorList

from speechlm.engines.base import Prompt, Sampling, Target
from speechlm.engines.hugging_face import HuggingFaceEngine

TEXT, SPEECH = 49_152, 16_384
TARGET = Target(first=TEXT, count=SPEECH, stop=TEXT + SPEECH)
IDS_PER_WORD = 3.8


class Only(LogitsProcessor):
    """Nothing but the target's ids."""

    def __init__(self, device: str) -> None:
        self.bias = torch.full((TEXT + SPEECH + 8,), -torch.inf, device=device)
        self.bias[TARGET.first : TARGET.first + TARGET.count] = self.bias[TARGET.stop] = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores + self.bias.to(scores)


def model_of(layers: int, device: str, dtype: str) -> LlamaForCausalLM:
    """SmolLM2-135M's shape, `layers` of its 30 layers."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=TEXT + SPEECH + 8,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=layers,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config).to(device, getattr(torch, dtype)).eval()


def words_of(lengths: str, count: int, draw: np.random.Generator) -> np.ndarray:
    """Spans of Poisson(10) words; sentences as long as the Brown corpus has them, 18.5 words on average with deviation 12.1."""
    if lengths == "sentences":
        return np.minimum(1 + draw.negative_binomial(2.4, 2.4 / (2.4 + 17.5), count), 60)
    return np.maximum(1, draw.poisson(10, count))


def prompts_of(count: int, lengths: str) -> list[Prompt]:
    """About 1.3 ids for each word, and 3.8 speech ids."""
    draw = np.random.default_rng(0)
    words = words_of(lengths, count, draw)
    return [
        Prompt(
            str(n),
            tuple(draw.integers(0, TEXT, max(2, int(w * 1.3))).tolist()),
            max_new=max(1, round(w * IDS_PER_WORD)),
        )
        for n, w in enumerate(words)
    ]


def continuous(model: LlamaForCausalLM, prompts: list[Prompt], batch: int) -> dict[str, tuple[int, ...]]:
    """Ours."""
    engine = HuggingFaceEngine(model, TARGET, slots=batch, max_length=320)
    return {one.key: one.ids for one in engine.generate(prompts, Sampling(temperature=0))}


@torch.no_grad()
def static(model: LlamaForCausalLM, prompts: list[Prompt], batch: int) -> dict[str, tuple[int, ...]]:
    """The usual loop."""
    found = {}
    only = LogitsProcessorList([Only(str(model.device))])
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        size = max(len(prompt.ids) for prompt in part)
        ids = torch.tensor([[0] * (size - len(prompt.ids)) + list(prompt.ids) for prompt in part], device=model.device)
        real = torch.tensor([[0] * (size - len(p.ids)) + [1] * len(p.ids) for p in part], device=model.device)
        longest = max(prompt.max_new for prompt in part)
        out = model.generate(
            ids, attention_mask=real, logits_processor=only, do_sample=False, max_new_tokens=longest,
            eos_token_id=TARGET.stop, pad_token_id=0,
        )[:, size:].tolist()  # fmt: skip
        for prompt, new in zip(part, out, strict=True):
            new = new[: prompt.max_new]
            found[prompt.key] = tuple(new[: new.index(TARGET.stop)] if TARGET.stop in new else new)
    return found


def timed(run: Callable[[], dict[str, tuple[int, ...]]]) -> tuple[float, float, dict[str, tuple[int, ...]]]:
    """Seconds by the clock, of the processor, and result."""
    start, busy = time.perf_counter(), time.process_time()
    found = run()
    return time.perf_counter() - start, time.process_time() - busy, found


def parts_of(model: LlamaForCausalLM, prompts: list[Prompt], batch: int) -> dict[str, float]:
    """Shares of the engine's processor time."""
    engine = HuggingFaceEngine(model, TARGET, slots=batch, max_length=320)
    spent: Counter[str] = Counter()

    def watched(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*given: Any) -> Any:
            start = time.process_time()
            try:
                return function(*given)
            finally:
                spent[name] += time.process_time() - start

        return run

    engine._lm.begin = watched("filling slots", engine._lm.begin)  # type: ignore[method-assign]
    engine._lm.step = watched("layers", engine._lm.step)  # type: ignore[method-assign]
    engine._lm.move = watched("closing gaps", engine._lm.move)  # type: ignore[method-assign]
    engine._draw = watched("head and draw", engine._draw)  # type: ignore[method-assign]
    start = time.process_time()
    for _ in engine.generate(prompts, Sampling(temperature=0)):
        pass
    whole = time.process_time() - start
    spent["all else"] = whole - sum(spent.values())
    return {name: round(seconds / whole, 3) for name, seconds in spent.items()}


def main() -> None:
    """Run both sides in turns and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", choices=("spans", "sentences"), default="spans")
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    model, prompts = (
        model_of(options.layers, options.device, options.dtype),
        prompts_of(options.prompts, options.lengths),
    )
    asked = sum(prompt.max_new for prompt in prompts)
    seconds: dict[str, list[tuple[float, float]]] = {"static": [], "continuous": []}
    same = 0.0
    for _ in range(options.rounds):
        *theirs_sec, theirs = timed(lambda: static(model, prompts, options.batch))
        *ours_sec, ours = timed(lambda: continuous(model, prompts, options.batch))
        seconds["static"].append(tuple(theirs_sec))  # type: ignore[arg-type]
        seconds["continuous"].append(tuple(ours_sec))  # type: ignore[arg-type]
        same = sum(ours[key] == theirs[key] for key in theirs) / len(theirs)
    clock, busy = ({name: asked / min(one[k] for one in of) for name, of in seconds.items()} for k in (0, 1))
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    print(
        json.dumps(
            {
                **vars(options),
                "commit": commit.stdout.strip(),
                "torch": torch.__version__,
                "threads": torch.get_num_threads(),
                "tokens": asked,
                "tokens/s": {name: round(rate, 1) for name, rate in clock.items()},
                "ratio": round(clock["continuous"] / clock["static"], 2),
                "tokens per processor second": {name: round(rate, 1) for name, rate in busy.items()},
                "ratio of processor time": round(busy["continuous"] / busy["static"], 2),
                "prompts with equal ids": round(same, 4),
                "parts": parts_of(model, prompts, options.batch) if options.device == "cpu" else {},
            }
        )
    )


if __name__ == "__main__":
    main()
