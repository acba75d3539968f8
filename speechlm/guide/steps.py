"""A way through all stages, in order: each by its own verb and config."""

import json
from pathlib import Path

from speechlm import chat, evaluate, prepare_eval, resynthesize, synthesize, tokenize, tokenizer_report
from speechlm.guide.making import Making, fresh, noted
from speechlm.guide.plan import PARTS
from speechlm.guide.step import Step

MIXTURE = {"text": 0.3, "speech": 0.1, "asr": 0.05, "tts": 0.05, "interleaved": 0.5}
PLAIN = {"text": 0.3, "speech": 0.5, "asr": 0.1, "tts": 0.1}  # the same budget without interleaved documents
SHORT_ITEMS = "2"  # of every evaluation


class Tour(Making):
    """The steps of a plan."""

    def steps(self) -> list[Step]:
        """All of them, in order."""
        return [
            *self.speech_becomes_tokens(),
            *self.text_becomes_tokens(),
            *self.a_language_of_both(),
            *self.the_language_answers(),
            *self.tokens_become_sound(),
            *self.it_is_talked_to(),
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
            self.export(
                "The model as a folder that others read", "text_to_token", "text_to_token", "--dtype", "float32"
            ),
            self.synthesize(self.plan.synthesize, "interleaved", self.plan.texts, synthesize.main),
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

    def the_language_answers(self) -> list[Step]:
        """Spoken dialogues of text chats, and the language model tuned on them."""
        scale = "python -m speechlm.submit --config configs/speech_lm/chat.yaml --nodes 1"
        more = ["--model.init_args.lm", str(self.model("speech_lm")), *self.data({"chat": 1.0}, {"chat": "chat"})]
        return [
            self.export(
                "The language model as a folder that others read", "speech_lm", "speech_lm", "--dtype", "float32"
            ),
            self.synthesize(self.plan.synthesize_chat, "dialogues", self.plan.chats, synthesize.main),
            *(self.rows(part, ("chat",), "Dialogues become rows") for part in PARTS),
            self.fit(
                "The model learns to answer, in text and speech by turns",
                "chat",
                self.plan.chat,
                "val/chat/loss",
                more,
                scale,
            ),
        ]

    def tokens_become_sound(self) -> list[Step]:
        """The tokenizer's codebook, a decoder of its codes to mel, a vocoder, and recordings through all of them."""
        tokens = {part: {"path": str(self.out / f"tokens_{part}"), "language": self.plan.language} for part in PARTS}
        codebook = self.model("codebook") / "codebook.safetensors"
        data = [
            "--data.init_args.train", json.dumps([tokens["train"]]),
            "--data.init_args.val", json.dumps({"heldout": tokens["heldout"]}),
        ]  # fmt: skip
        return [
            self.export("The vectors of the codes", "tokenizer", "codebook", "--format", "codebook"),
            self.fit(
                "Tokens become mel: the flow decoder learns the codes of this tokenizer",
                "flow_decoder",
                self.plan.flow_decoder,
                "val/heldout/mel_l1",
                ["--model.init_args.codebook", str(codebook), *data],
                "python -m speechlm.submit --config configs/flow_decoder/paper.yaml --nodes 1",
            ),
            self.fit(
                "Mel becomes sound: the vocoder learns the voice",
                "vocoder",
                self.plan.vocoder,
                "val/heldout/mel_l1",
                data,
                "python -m speechlm.submit --config configs/vocoder/paper.yaml --nodes 1",
            ),
            *(self.heard_again(name, path) for name, path in self.plan.recordings.items()),
        ]

    def heard_again(self, name: str, path: str) -> Step:
        """A recording through tokens and back."""
        words = [
            path, str(self.out / "sounds" / f"{name}.flac"), "--tokenizer", str(self.out / "tokenizer"),
            "--decoder", str(self.out / "flow_decoder"), "--vocoder", str(self.out / "vocoder"),
        ]  # fmt: skip
        return Step(
            f"A recording through tokens and back: {name}", "speechlm.resynthesize", tuple(words), resynthesize.main
        )

    def it_is_talked_to(self) -> list[Step]:
        """All parts in one folder, spoken answers to recorded questions, and an evaluation of everything."""
        voice = self.model("voice")
        bundled = [
            "bundle", "--out", str(voice), "--lm", str(self.out / "chat"), "--tokenizer", str(self.out / "tokenizer"),
            "--decoder", str(self.out / "flow_decoder"), "--vocoder", str(self.out / "vocoder"),
            "--template", "plain", "--dtype", "float32", "--max_length", str(self.plan.row_len),
        ]  # fmt: skip
        return [
            Step("All parts in one folder", "speechlm.chat", tuple(bundled), fresh(chat.main, voice)),
            *(self.answer(name, path, voice) for name, path in self.plan.questions.items()),
            *(self.items_of(part) for part in PARTS),
            self.evaluation(),
        ]

    def answer(self, name: str, question: str, voice: Path) -> Step:
        """A recorded question, a spoken answer."""
        sound = self.out / "sounds" / f"answer_{name}.wav"
        words = ["file", question, str(sound), "--model", str(voice)]
        if self.short:
            words += ["--max_new", "60"]  # it does not know yet when to stop
        scale = "python -m speechlm.chat serve --model models/demo --device cuda"
        main = noted(chat.main, sound.with_suffix(".txt"))
        return Step(f"A spoken answer: {name}", "speechlm.chat", tuple(words), main, scale)

    def items_of(self, part: str) -> Step:
        """A set of recordings as an evaluation set."""
        words = ("recordings", "--cuts", self.plan.cuts[part], "--out", str(self.out / "eval" / f"{part}.jsonl"))
        return Step(f"What is asked of the model: {part}", "speechlm.prepare_eval", words, prepare_eval.main)

    def evaluation(self) -> Step:
        """Every part by the plan's suite."""
        words = [
            "--config", self.plan.evaluate, "--out", str(self.out / "evaluation"), "--model",
            f"speech_tokenizer={self.out / 'tokenizer'}", f"text_to_token={self.model('text_to_token')}",
            f"lm={self.out / 'chat'}", f"flow_decoder={self.out / 'flow_decoder'}", f"vocoder={self.out / 'vocoder'}",
        ]  # fmt: skip
        for task, part in self.plan.tasks.items():
            asked = [f"--tasks.{task}.init_args.items", str(self.out / "eval" / f"{part}.jsonl")]
            few = [f"--tasks.{task}.init_args.limit", SHORT_ITEMS]
            words += (asked if part else []) + (few if self.short else [])
        scale = "python -m speechlm.evaluate --config configs/evaluate/paper.yaml --model runs/tokenizer runs/lm …"
        return Step("Everything is measured", "speechlm.evaluate", tuple(words), evaluate.main, scale)
