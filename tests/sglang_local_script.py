"""Generates with SGLang in its own process: `python sglang_local_script.py MODEL WORK.json`, prints one JSON line of generations.

Run by an interpreter whose environment has sglang; `WORK.json` says what to ask.
"""

import json
import sys
from pathlib import Path

from speechlm.engines.base import Prompt, Sampling, Target
from speechlm.engines.sglang_local import SGLangLocalEngine, start


def main() -> None:
    model, work = sys.argv[1], json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    prompts = [Prompt(key, tuple(ids), max_new, min_new) for key, ids, max_new, min_new in work["prompts"]]
    sglang = start(model, work["max_length"], work["device"], "float32", work["settings"])
    engine = SGLangLocalEngine(
        sglang, Target(*work["target"]), work["vocab_size"], work["max_length"], group=4, in_flight=3
    )
    try:
        rounds = [[list(one) for one in engine.generate(prompts, Sampling(temperature=0))] for _ in range(2)]
    finally:
        sglang.shutdown()
    print("\nGENERATIONS " + json.dumps(rounds), flush=True)


if __name__ == "__main__":
    main()
