"""SGLang in this process: the offline `sglang.Engine`, without a server, a port or a key.

The scheduler and the model run in processes that SGLang starts; what is asked and answered is what its HTTP server is asked and
answers (`speechlm.engines.sglang`), so prompts are checked before they are handed over and generations when they come back. When
one of its processes dies, SGLang ends this one too: start the same command again, which goes on where it was.

The environment needs both sglang and this package; a program that uses it must be started as a module or guard its entry with
`if __name__ == "__main__"`, since the processes are spawned.
"""

import asyncio
import importlib
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from speechlm.engines.base import Generation, Prompt, Sampling, Target, check_prompt
from speechlm.engines.sglang import TRIES, BadAnswer, generation, sampling_params

OURS = ("model_path", "skip_tokenizer_init", "trust_remote_code", "device", "base_gpu_id", "context_length", "dtype")


class SGLangLocalEngine:
    """Generates with an `sglang.Engine`.

    With temperature 0 the ids are those of `HuggingFaceEngine`, where the model prefers the target's ids by itself. With
    sampling, every prompt has its own seed, which an engine heeds that was started with `enable_deterministic_inference`.

    Args:
        engine: started with `skip_tokenizer_init`.
        target: ids that may be generated.
        vocab_size: ids of the model.
        max_length: positions the engine was started with.
        group: prompts that are handed over together.
        in_flight: groups at work at once; SGLang batches them as it has room.
    """

    def __init__(
        self, engine: Any, target: Target, vocab_size: int, max_length: int = 1024, group: int = 16, in_flight: int = 16
    ) -> None:
        self.engine, self.target, self.vocab_size, self.max_length = engine, target, vocab_size, max_length
        self.group, self.in_flight = group, in_flight

    def generate(self, prompts: Iterable[Prompt], sampling: Sampling) -> Iterator[Generation]:
        """See `Engine.generate`.

        Raises:
            BadAnswer: SGLang refuses the same prompts again and again.
        """
        waiting, loop = iter(prompts), self.engine.loop
        working = set[asyncio.Task[list[Generation]]]()
        try:
            while True:
                while len(working) < self.in_flight and (group := list(islice(waiting, self.group))):
                    for prompt in group:
                        check_prompt(prompt, self.vocab_size, self.max_length)
                    working.add(loop.create_task(self._ask(group, sampling)))
                if not working:
                    return
                done, working = loop.run_until_complete(asyncio.wait(working, return_when=asyncio.FIRST_COMPLETED))
                for task in done:
                    yield from task.result()
        finally:
            for task in working:
                task.cancel()
            if working:
                loop.run_until_complete(asyncio.gather(*working, return_exceptions=True))

    async def _ask(self, group: list[Prompt], sampling: Sampling) -> list[Generation]:
        """Generations of a group, tried again where SGLang gives none."""
        error = ""
        for _ in range(TRIES):
            try:
                answers = await self.engine.async_generate(
                    input_ids=[list(prompt.ids) for prompt in group],
                    sampling_params=[sampling_params(prompt, sampling, self.target.stop) for prompt in group],
                )
                return [generation(prompt, one, self.target) for prompt, one in zip(group, answers, strict=True)]
            except (BadAnswer, ValueError, TypeError) as caught:
                error = f"{type(caught).__name__}: {caught}"
        raise BadAnswer(f"{TRIES} tries failed for prompts {group[0].key!r} to {group[-1].key!r}; the last: {error}")


def start(model: str, max_length: int, device: str, dtype: str, settings: dict[str, Any]) -> Any:
    """An `sglang.Engine` for a folder; no code of the folder is run.

    Args:
        model: folder of an exported model.
        max_length: positions of a sequence.
        device: cpu, cuda or cuda:N.
        dtype: of weights and arithmetic.
        settings: of `sglang.Engine`, by its names for them.

    Raises:
        ValueError: sglang is not installed, or `settings` has what is decided here.
    """
    decided = sorted(set(settings) & set(OURS))
    if decided:
        raise ValueError(f"settings of SGLang have {', '.join(decided)}, which the engine's own arguments decide")
    try:
        sglang = importlib.import_module("sglang")
    except ImportError as error:
        raise ValueError(
            f"SGLang can not be used in this process ({error}); pip install 'speechlm[sglang]', or start "
            f"a server and use speechlm.engines.open.SGLang (docs/text_to_token.md)"
        ) from error
    kind, _, index = device.partition(":")
    return sglang.Engine(
        model_path=model,
        skip_tokenizer_init=True,
        trust_remote_code=False,
        device=kind,
        base_gpu_id=int(index or 0),
        context_length=max_length,
        dtype=dtype,
        **settings,
    )
