"""Text retention: lm-eval's own tasks on the language model, a task it does not have is counted by name."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from speechlm.evals.language_model import EvaluatedLM
from speechlm.evals.parts import MissingPart, Scorable
from speechlm.evals.retention import TextRetention
from speechlm.evals.task import Place
from speechlm.tokens.vocab import Vocab

WHISPER = str(Path(__file__).parents[1] / "assets" / "whisper-nano-en")
ITEMS = [{"id": "a", "task": "letters", "shots": 0, "limit": 4}, {"id": "b", "task": "no_such_task"}]
#: What lm-eval 0.4.13 gives for a multiple-choice task.
GIVEN = {
    "letters": {
        "name": "letters", "alias": "letters", "sample_len": 4, "acc,none": 0.75, "acc_stderr,none": 0.25,
        "acc_norm,none": 0.5, "acc_norm_stderr,none": "N/A",
    }
}  # fmt: skip


def parts() -> Any:
    torch.manual_seed(0)
    size = len(AutoTokenizer.from_pretrained(WHISPER))
    config = Qwen2Config(
        vocab_size=size + 50, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=128,
    )  # fmt: skip
    return SimpleNamespace(lm=EvaluatedLM(Qwen2ForCausalLM(config), Vocab(size, 20), WHISPER))


def answered(task: TextRetention, folder: Path) -> dict[str, Any]:
    records = task.answer("answers", ITEMS, [], parts(), Place(folder, folder))
    scored = task.score(ITEMS, records, folder)
    assert scored.problems == {"lm-eval has no such task": ["b"]}
    return {metric.name: metric for metric in scored.metrics}


def test_every_number_of_lm_eval_is_kept_with_its_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def evaluated(**given: Any) -> dict[str, Any]:
        asked.append(given)
        return {"results": GIVEN, "versions": {"letters": 1}}

    fakes = {
        "lm_eval": SimpleNamespace(simple_evaluate=evaluated),
        "lm_eval.models.huggingface": SimpleNamespace(HFLM=lambda **given: given),
        "lm_eval.tasks": SimpleNamespace(TaskManager=lambda include_path: SimpleNamespace(all_tasks=["letters"])),
    }
    for name, fake in fakes.items():
        monkeypatch.setitem(sys.modules, name, fake)
    found = answered(TextRetention("items"), tmp_path)
    assert {name: (m.value, m.low, m.high, m.count) for name, m in found.items()} == {
        "letters acc none": (0.75, 0.75 - 0.49, 0.75 + 0.49, 4), "letters acc_norm none": (0.5, None, None, 4),
    }  # fmt: skip
    assert [(one["tasks"], one["num_fewshot"], one["limit"]) for one in asked] == [(["letters"], 0, 4)]
    assert asked[0]["model"]["add_bos_token"] is False and asked[0]["bootstrap_iters"] > 0


def test_without_lm_eval_the_task_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(MissingPart, match=r"speechlm\[lm-eval\]"):
        TextRetention("items").answer("answers", ITEMS, [], parts(), Place(tmp_path, tmp_path))


def test_a_task_of_ones_own_through_lm_eval_itself(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    rows = [{"prompt": "abc" * n, "choices": ["x", "y z"], "label": n % 2} for n in range(1, 6)]
    (tmp_path / "rows.json").write_text("\n".join(map(json.dumps, rows)))
    about = {
        "task": "letters", "dataset_path": "json", "test_split": "test", "output_type": "multiple_choice",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.json")}, "cache_dir": str(tmp_path / "cache")},
        "doc_to_text": "prompt", "doc_to_choice": "choices", "doc_to_target": "label", "metric_list": [{"metric": "acc"}],
        "metadata": {"version": 1},
    }  # fmt: skip
    (tmp_path / "letters.yaml").write_text(json.dumps(about))
    found = answered(TextRetention("items", include=str(tmp_path)), tmp_path)["letters acc none"]
    model, right = parts().lm, []
    for row in rows[:4]:
        prompt = model.encode(row["prompt"])
        options = [Scorable((*prompt, *model.encode(f" {choice}")), len(prompt)) for choice in row["choices"]]
        sums = [one.ending.nll for one in model.likelihoods(options)]
        right.append(sums.index(min(sums)) == row["label"])
    assert found.value == sum(right) / 4 and found.count == 4  # lm-eval's likelihoods choose what ours do
    assert found.low is not None and found.low < found.value < (found.high or 0)
