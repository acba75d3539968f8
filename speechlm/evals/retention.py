"""What is left of the text model: any tasks of lm-eval, on the language model as the plain one that it still is."""

import importlib
import importlib.metadata
import importlib.util
import json
from collections.abc import Sequence, Set
from pathlib import Path
from types import MappingProxyType
from typing import Any

from speechlm.evals.items import Item, Unusable
from speechlm.evals.parts import MissingPart, Parts
from speechlm.evals.task import Metric, Place, Record, Scored, Task, each, usable
from speechlm.hub_tokenizer import load_tokenizer

BOOTSTRAP = 100  # draws of what has no formula for its error; with 0 lm-eval gives no error at all


class TextRetention(Task):
    """lm-eval (https://github.com/EleutherAI/lm-evaluation-harness), optional: `pip install 'speechlm[lm-eval]'`.

    Args:
        items: file with one item per lm-eval task: `task` its name, `shots`, and `limit` where not all of it is asked.
        include: folder of task definitions of one's own.
        shard: always 1.
        limit: tasks at most.
    """

    uses = MappingProxyType({"answers": ("lm",)})

    def __init__(self, items: str, include: str = "", shard: int = 1, limit: int | None = None) -> None:
        self.items, self.include, self.shard, self.limit = items, include, 1, limit

    def check(self, item: Item) -> str:
        """A task's name."""
        return "" if isinstance(item.get("task"), str) and item["task"] else "no task"

    def settings(self, phase: str) -> dict[str, Any]:
        """The harness's version, and that texts have no special tokens around them."""
        version = importlib.metadata.version("lm_eval") if importlib.util.find_spec("lm_eval") else ""
        return {"lm_eval": version, "special_tokens": False}

    def answer(self, phase: str, items: list[Item], before: list[Record], parts: Parts, place: Place) -> list[Record]:
        """What lm-eval finds.

        Raises:
            MissingPart: it is not installed.
        """
        try:
            lm_eval = importlib.import_module("lm_eval")
            models = importlib.import_module("lm_eval.models.huggingface")
            tasks = importlib.import_module("lm_eval.tasks")
        except ImportError as error:
            raise MissingPart(f"text retention needs lm-eval: pip install 'speechlm[lm-eval]' ({error})") from error
        # as in the rows it was trained on: what a tokenizer puts around a text would also tear answers from their questions
        lm: Any = parts.lm
        model = models.HFLM(
            pretrained=lm.plain_model, tokenizer=load_tokenizer(lm.plain_tokenizer), add_bos_token=False
        )
        manager = tasks.TaskManager(include_path=self.include or None)
        known = set(manager.all_tasks)
        made, failed = each(items, lambda item: self._asked(item, lm_eval, model, manager, known))
        return [made.get(n) or failed[n] for n in range(len(items))]

    def score(self, items: Sequence[Item], records: Sequence[Record], files: Path) -> Scored:
        """Its numbers, with 1.96 of its standard errors."""
        good, problems = usable(items, records)
        return Scored([metric for _, record in good for metric in _metrics(record)], problems=problems)

    def _asked(self, item: Item, lm_eval: Any, model: Any, manager: Any, known: Set[str]) -> Record:
        if item["task"] not in known:
            raise Unusable("lm-eval has no such task", item["task"])
        found = lm_eval.simple_evaluate(
            model=model,
            tasks=[item["task"]],
            num_fewshot=item.get("shots"),
            limit=item.get("limit"),
            task_manager=manager,
            bootstrap_iters=BOOTSTRAP,
            log_samples=False,
        )
        plain = json.loads(json.dumps(found["results"], default=str))
        return {"results": plain, "versions": json.loads(json.dumps(found.get("versions", {}), default=str))}


def _metrics(record: Record) -> list[Metric]:
    metrics = []
    for task, numbers in sorted(record["results"].items()):
        for key, value in sorted(numbers.items()):
            name, _, rule = key.partition(",")
            if not isinstance(value, int | float) or name.endswith("_stderr") or name in ("alias", "sample_len"):
                continue
            error = numbers.get(f"{name}_stderr,{rule}")
            spread = 1.96 * error if isinstance(error, int | float) else None
            low, high = (None, None) if spread is None else (value - spread, value + spread)
            metrics.append(
                Metric(f"{task} {name} {rule}".strip(), float(value), low, high, numbers.get("sample_len", 0))
            )
    return metrics
