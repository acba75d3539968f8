"""Run in a process of its own: trains a small language model by Lightning for three steps and says how much memory that took."""

import json
import sys
import tempfile
from pathlib import Path

import torch

from speechlm.batch import RowBatch
from speechlm.stages.speech_lm import SpeechLM
from speechlm.tokens.clock import Clock
from speechlm.tokens.vocab import Vocab
from tests.test_speech_lm import fit
from tests.tiny_lm import write_lm_config


def resident(name: str) -> int:
    """Bytes, of what Linux says of this process."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024


def main() -> None:
    """Arguments: {"shape", "rows", "row_len", "stage", "trainer"} as JSON."""
    given = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp())
    small = given["shape"] | {"hidden_size": 32, "intermediate_size": 32, "head_dim": 8, "num_hidden_layers": 1}
    for shape, rows, row_len in ((small, 1, 32), (given["shape"], given["rows"], given["row_len"])):
        before = resident("VmRSS")  # of the second: after everything was imported and used once
        vocab = Vocab(num_text=shape["vocab_size"] - 256, num_speech=128)
        lm = write_lm_config(folder / str(row_len), shape["kind"], **{k: v for k, v in shape.items() if k != "kind"})
        stage = SpeechLM(Clock(), vocab, lm, from_scratch=True, **given["stage"])
        ids = torch.randint(len(vocab), (rows, row_len))
        mask = torch.ones_like(ids, dtype=torch.bool)
        mask[:, 0] = False
        batch = RowBatch(ids, mask, torch.zeros_like(ids), torch.zeros(rows, dtype=torch.long))
        Path("/proc/self/clear_refs").write_text("5")
        fit(stage, [batch] * 3, folder, steps=3, limit_val_batches=0, **given["trainer"])
    print(json.dumps({"bytes": resident("VmHWM") - before}))


if __name__ == "__main__":
    main()
