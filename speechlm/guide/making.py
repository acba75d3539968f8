"""What several steps of a way through all stages are made of: trainings, rows, exports."""

import contextlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

from speechlm import export, fit, pack
from speechlm.files import write_text_atomic
from speechlm.guide.plan import Plan
from speechlm.guide.step import Step

SHORT_STEPS = 4  # of every training but the tokenizer's, whose codebook is there after 20
SHORT_TOKENIZER_STEPS = 30
SHORT_TEXTS = 8


class Making:
    """Commands whose files lie in one folder.

    Args:
        plan: corpora and configs.
        out: the folder.
        short: a few steps of everything, to see that it works.
    """

    def __init__(self, plan: Plan, out: Path, short: bool = False) -> None:
        self.plan, self.out, self.short = plan, out, short

    def fit(
        self, title: str, name: str, config: str, learnt: str, more: tuple[str, ...] | list[str], at_scale: str = ""
    ) -> Step:
        """A training."""
        few = str(SHORT_TOKENIZER_STEPS if name == "tokenizer" else SHORT_STEPS)
        less = ["--trainer.max_steps", few, "--trainer.val_check_interval", few, "--trainer.limit_val_batches", "1"]
        hours = self.plan.hours.get(name)
        timed = ["--trainer.max_time", max_time(hours)] if hours else []
        words = ("--config", config, "--name", name, "--runs_dir", str(self.out), *more, *less * self.short, *timed)
        return Step(title, "speechlm.fit", words, fit.main, at_scale, name, learnt)

    def export(self, title: str, run: str, name: str, *more: str) -> Step:
        """A run as a folder under `models`; what an interrupted export left is made anew."""
        words = ("--run", str(self.out / run), "--out", str(self.model(name)), *more)
        return Step(title, "speechlm.export", words, fresh(export.main, self.model(name)))

    def synthesize(self, config: str, made: str, texts: dict[str, str], main: Callable[[list[str]], object]) -> Step:
        """Documents or dialogues out of texts or chats, by the plan's text-to-token model."""
        words = ["--config", config, "--model", str(self.model("text_to_token")), "--out", str(self.out / made)]
        if self.short:  # the model does not know yet when to stop
            few = {part: {"paths": [path], "max_documents": SHORT_TEXTS} for part, path in texts.items()}
            words += ["--sources", json.dumps(few), "--interleave.tries", "1"]
        title = "Texts become interleaved documents" if made == "interleaved" else "Chats become spoken dialogues"
        scale = "fineweb_edu" if made == "interleaved" else "chat"
        at_scale = f"sbatch --array=0-15 slurm/synthesize.sbatch configs/synthesize/{scale}.yaml"
        return Step(title, "speechlm.synthesize", tuple(words), main, at_scale)

    def rows(self, part: str, kinds: tuple[str, ...], title: str) -> Step:
        """Rows of some kinds; every kind has a folder of its own."""
        paths = {
            "text": self.plan.texts[part],
            "interleaved": str(self.out / "interleaved" / part),
            "chat": str(self.out / "dialogues" / part),
            **dict.fromkeys(("speech", "asr", "tts"), str(self.out / f"tokens_{part}")),
        }
        sources = {kind: {"kind": kind, "paths": [paths[kind]], "language": self.plan.language} for kind in kinds}
        words = [
            "--text_tokenizer", self.plan.text_tokenizer, "--packing.row_len", str(self.plan.row_len),
            "--sources", json.dumps(sources), "--out", str(self.folder(part)),
        ]  # fmt: skip
        first = self.folder("train") / "vocab.json"
        if kinds[0] != "speech" or part != "train":
            words += ["--vocab", str(first)]
        scale = f"srun python -m speechlm.pack --config configs/pack/{'chat' if 'chat' in kinds else 'paper'}.yaml"
        return Step(f"{title}: {part}", "speechlm.pack", tuple(words), pack.main, scale)

    def data(self, weights: dict[str, float], val: dict[str, str]) -> list[str]:
        """Arguments of a training over rows."""
        train, heldout = self.folder("train"), self.folder("heldout")
        sources = [
            {"path": str(train / kind), "weight": weight, "language": self.plan.language}
            for kind, weight in weights.items()
        ]
        sets = {name: str(heldout / kind) for name, kind in val.items()}
        return [
            "--model.init_args.vocab", str(train / "vocab.json"),
            "--data.init_args.train", json.dumps(sources), "--data.init_args.val", json.dumps(sets),
        ]  # fmt: skip

    def folder(self, part: str) -> Path:
        """Where the rows of a set are."""
        return self.out / f"rows_{part}"

    def model(self, name: str) -> Path:
        """Where an exported model is."""
        return self.out / "models" / name


def max_time(hours: float) -> str:
    """As Lightning writes it: days, hours, minutes, seconds."""
    seconds = round(hours * 3600)
    return f"{seconds // 86400:02d}:{seconds // 3600 % 24:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def fresh(main: Callable[[list[str]], object], made: Path) -> Callable[[list[str]], object]:
    """A command that refuses to write where something is, run where that is what an interrupted one left."""

    def call(words: list[str]) -> object:
        if made.is_dir():
            shutil.rmtree(made)
        return main(words)

    return call


def noted(main: Callable[[list[str]], object], path: Path) -> Callable[[list[str]], object]:
    """A command whose output is also kept in a file, for the page."""

    def call(words: list[str]) -> object:
        printed = io.StringIO()
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.redirect_stdout(printed):
            made = main(words)
        write_text_atomic(path, printed.getvalue())
        print(printed.getvalue(), end="")
        return made

    return call
