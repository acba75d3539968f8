"""A way through all stages, in order: each by its own verb and config."""

import json
from collections.abc import Callable
from pathlib import Path

from speechlm import export, fit, pack, synthesize, tokenize, tokenizer_report
from speechlm.guide.plan import Plan
from speechlm.guide.step import Step

PARTS = ("train", "heldout")
SHORT_STEPS = 4  # of every training but the tokenizer's, whose codebook is there after 20
SHORT_TOKENIZER_STEPS = 30
SHORT_TEXTS = 8
MIXTURE = {"text": 0.3, "speech": 0.1, "asr": 0.05, "tts": 0.05, "interleaved": 0.5}
PLAIN = {"text": 0.3, "speech": 0.5, "asr": 0.1, "tts": 0.1}  # the same budget without interleaved documents


class Tour:
    """Commands whose files lie in one folder.

    Args:
        plan: corpora and configs.
        out: the folder.
        short: a few steps of everything, to see that it works.
    """

    def __init__(self, plan: Plan, out: Path, short: bool = False) -> None:
        self.plan, self.out, self.short = plan, out, short

    def steps(self) -> list[Step]:
        """All of them, in order."""
        return [
            *self.speech_becomes_tokens(),
            *self.text_becomes_tokens(),
            *self.a_language_of_both(),
        ]

    def speech_becomes_tokens(self) -> list[Step]:
        """A tokenizer, its report, and tokens of both sets of recordings."""
        limit = ["--limit", "12"] if self.short else []
        run = str(self.out / "tokenizer")
        return [
            self.fit(
                "Speech becomes tokens: a tokenizer learns from transcripts",
                "tokenizer",
                self.plan.tokenizer,
                "",
                [],
                at_scale="python -m speechlm.submit --config configs/speech_tokenizer/large_v3_12.5hz.yaml --nodes 8",
            ),
            Step(
                "What the tokenizer has learnt",
                "speechlm.tokenizer_report",
                ("--run", run, *limit),
                tokenizer_report.main,
            ),
            *(self.tokens_of(part) for part in PARTS),
        ]

    def tokens_of(self, part: str) -> Step:
        """The tokens of a set of recordings."""
        words = [
            "--config", self.plan.tokenize,
            "--cuts", json.dumps([self.plan.cuts[part]]), "--out", str(self.out / f"tokens_{part}"),
            "--tokenizer.init_args.run", str(self.out / "tokenizer"),
        ]  # fmt: skip
        scale = "sbatch --array=0-63 slurm/tokenize.sbatch configs/tokenize/emilia.yaml"
        return Step(f"A corpus becomes tokens: {part}", "speechlm.tokenize", tuple(words), tokenize.main, scale)

    def text_becomes_tokens(self) -> list[Step]:
        """Pairs in rows, a text-to-token model of them, and interleaved documents made with it."""
        model = str(self.out / "models" / "text_to_token")
        exported = ["--run", str(self.out / "text_to_token"), "--out", model, "--dtype", "float32"]
        made = ["--model", model, "--out", str(self.out / "interleaved")]
        if self.short:  # the model does not know yet when to stop
            few = {part: {"paths": [path], "max_documents": SHORT_TEXTS} for part, path in self.plan.texts.items()}
            made += ["--sources", json.dumps(few), "--interleave.tries", "1"]
        return [
            *(self.rows(part, ("speech", "asr", "tts"), "Recordings and transcripts become rows") for part in PARTS),
            self.fit(
                "Text becomes speech tokens, without a sound: a small language model from nothing",
                "text_to_token",
                self.plan.text_to_token,
                "val/pairs/loss",
                self.data({"tts": 1.0}, {"pairs": "tts"}),
                at_scale="python -m speechlm.submit --config configs/text_to_token/qwen2.5_1.5b.yaml --nodes 2",
            ),
            Step(
                "The model as a folder that others read",
                "speechlm.export",
                tuple(exported),
                fresh(export.main, Path(model)),
            ),
            Step(
                "Texts become interleaved documents",
                "speechlm.synthesize",
                ("--config", self.plan.synthesize, *made),
                synthesize.main,
                "sbatch --array=0-15 slurm/synthesize.sbatch configs/synthesize/fineweb_edu.yaml",
            ),
            *(self.rows(part, ("text", "interleaved"), "Texts become rows") for part in PARTS),
        ]

    def a_language_of_both(self) -> list[Step]:
        """The language model with interleaved documents, and without."""
        val = {name: name for name in ("text", "speech", "interleaved")}
        scale = "python -m speechlm.submit --config configs/speech_lm/glm4_9b.yaml --nodes 32"
        config = self.plan.speech_lm
        return [
            self.fit(
                "One model of speech and text",
                "speech_lm",
                config,
                "val/interleaved/loss",
                self.data(MIXTURE, val),
                scale,
            ),
            self.fit(
                "The same budget without interleaved documents",
                "speech_lm_plain",
                config,
                "val/text/loss",
                self.data(PLAIN, val),
                scale,
            ),
        ]

    # -- what several steps are made of ---------------------------------------------------------------------------------

    def fit(self, title: str, name: str, config: str, learnt: str, more: list[str], at_scale: str = "") -> Step:
        """A training."""
        few = str(SHORT_TOKENIZER_STEPS if name == "tokenizer" else SHORT_STEPS)
        less = ["--trainer.max_steps", few, "--trainer.val_check_interval", few] if self.short else []
        hours = self.plan.hours.get(name)
        timed = ["--trainer.max_time", max_time(hours)] if hours else []
        words = ("--config", config, "--name", name, "--runs_dir", str(self.out), *more, *less, *timed)
        return Step(title, "speechlm.fit", words, fit.main, at_scale, name, learnt)

    def rows(self, part: str, kinds: tuple[str, ...], title: str) -> Step:
        """Rows of some kinds; every kind has a folder of its own."""
        paths = {
            "text": self.plan.texts[part],
            "interleaved": str(self.out / "interleaved" / part),
            **dict.fromkeys(("speech", "asr", "tts"), str(self.out / f"tokens_{part}")),
        }
        sources = {kind: {"kind": kind, "paths": [paths[kind]], "language": self.plan.language} for kind in kinds}
        words = [
            "--text_tokenizer", self.plan.text_tokenizer, "--packing.row_len", str(self.plan.row_len),
            "--sources", json.dumps(sources), "--out", str(self.folder(part)),
        ]  # fmt: skip
        first = self.folder("train") / "vocab.json"
        if "text" in kinds or part != "train":
            words += ["--vocab", str(first)]
        scale = "srun python -m speechlm.pack --config configs/pack/paper.yaml"
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


def max_time(hours: float) -> str:
    """As Lightning writes it: days, hours, minutes, seconds."""
    seconds = round(hours * 3600)
    return f"{seconds // 86400:02d}:{seconds // 3600 % 24:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def fresh(main: Callable[[list[str]], object], made: Path) -> Callable[[list[str]], object]:
    """A command that refuses to write where something is, run where that is what an interrupted one left."""

    def call(words: list[str]) -> object:
        if made.is_dir():
            for file in made.iterdir():
                file.unlink()
            made.rmdir()
        return main(words)

    return call
