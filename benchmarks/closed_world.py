"""Does interleaved data carry what was read over to what is heard? One budget of tokens, with and without it, in a closed world.

    python benchmarks/closed_world.py --out runs/closed_world [--steps 1200] [--seeds 0 1 2] [--people 100]

Small language models are trained from nothing on three mixtures of the same number of ids, through the same verbs and rows as a
large one: text and speech; text, speech and pairs; text, speech, pairs and interleaved documents, in the shares of the paper. A
quarter of the world's facts (`speechlm.evals.closed_world`) is only ever written. Each model is then asked for every fact in
four ways: question read or heard, answer written or spoken, ten answers to choose from by their mean log-probability.

Writes one JSON, a table and a picture. Runs that are done are not trained again.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from transformers import Qwen2Config

from datamodules.row_batches import batch_of
from speechlm.evals.closed_world import Question, World, questions
from speechlm.files import write_text_atomic
from speechlm.load import load_stage
from speechlm.provenance import provenance
from speechlm.text_tokenizer import TextTokenizer
from speechlm.tokens.filling import RowFiller
from speechlm.tokens.interleave import Document, plan, segments
from speechlm.tokens.keyed import key_of
from speechlm.tokens.rows import RowFolder, index_of, row_writer, write_index
from speechlm.tokens.templates import TEMPLATES, Kind, Writer, Written
from speechlm.tokens.vocab import Vocab

ROOT = Path(__file__).resolve().parents[1]
TOKENIZER = ROOT / "assets" / "whisper-nano-en"
CONFIG = ROOT / "configs" / "speech_lm" / "closed_world.yaml"
ROW_LEN, RATIO, MEAN_SPAN = 256, 0.5, 3.0
ARMS: dict[str, dict[Kind, float]] = {
    "text and speech": {"text": 0.3, "speech": 0.7},
    "and pairs": {"text": 0.3, "speech": 0.4, "asr": 0.15, "tts": 0.15},
    "and interleaved": {"text": 0.3, "speech": 0.1, "asr": 0.05, "tts": 0.05, "interleaved": 0.5},
}
WAYS = ("T→T", "S→T", "T→S", "S→S")


class Scribe:
    """Writes the world's documents of every kind as shared ids.

    Args:
        world: the facts.
        seed: of voices and spans.
    """

    def __init__(self, world: World, seed: int = 0) -> None:
        self.world, self.tokenizer, self.rng = world, TextTokenizer(TOKENIZER), np.random.default_rng(seed)
        self.seed = seed
        self.vocab = Vocab(self.tokenizer.size, world.num_codes, text_tokenizer=self.tokenizer.fingerprint)
        kinds: tuple[Kind, ...] = ("text", "speech", "asr", "tts", "interleaved")
        self.writers = {
            kind: Writer(kind, None, self.vocab, self.read, self.tokenizer.specials, self.tokenizer.end)
            for kind in kinds
        }

    def read(self, text: str) -> list[int]:
        """Text-tokenizer ids."""
        return self.tokenizer.encode([text])[0].tolist()

    def write(self, kind: Kind, number: int, text: str) -> Written:
        """A document's ids; all speech of a document is in one voice."""
        writer = self.writers[kind]
        if kind == "interleaved":
            return writer.write(parts=self._parts(number, text))
        ids = np.array(self.read(text))
        return writer.write(*(None if kind == "speech" else ids, None if kind == "text" else self._said(text)))

    def _said(self, text: str) -> np.ndarray:
        return self.world.spoken(text, self.rng)

    def _parts(self, number: int, text: str) -> list[tuple[str, np.ndarray]]:
        cut = segments(text, plan(Document(str(number), text), 0, self.seed, RATIO, MEAN_SPAN))
        return [
            (
                part.kind,
                self._said(text[part.start : part.end])
                if part.kind == "speech"
                else np.array(self.read(text[part.start : part.end])),
            )
            for part in cut
        ]


def write_rows(scribe: Scribe, kind: Kind, documents: int, folder: Path, seed: int) -> None:
    """Rows of one kind; only text tells all facts."""
    rng = np.random.default_rng([seed, len(kind)])
    path = folder / "00000.rows"
    about = {"source": folder.name, "kind": kind, "language": "en", "token_rate_hz": 12.5}
    with row_writer(path, ROW_LEN, scribe.vocab.hash, len(scribe.vocab), about) as rows:
        filler = RowFiller(rows, scribe.vocab, 2**20)
        for number, text in enumerate(scribe.world.documents(documents, kind != "text", rng)):
            filler.add(scribe.write(kind, number, text))
        about["counts"] = {"documents_in": documents, **asdict(filler.finish()), "skipped": {}}
    write_index(folder, index_of([path]))


def prepare(out: Path, world: World, documents: int) -> Scribe:
    """Rows for training and for the held-out losses, the vocabulary and the model's shape."""
    scribe = Scribe(world)
    out.mkdir(parents=True, exist_ok=True)
    scribe.vocab.save(out / "vocab.json")
    shape = Qwen2Config(
        vocab_size=len(scribe.vocab), hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=ROW_LEN, tie_word_embeddings=True, bos_token_id=None,
        eos_token_id=scribe.tokenizer.end, pad_token_id=None,
    )  # fmt: skip
    shape.save_pretrained(out / "shape")
    for kind in scribe.writers:
        for part, count, seed in (("train", documents, 1), ("heldout", max(20, documents // 100), 2)):
            if not (out / f"{kind}_{part}" / "index.json").exists():
                write_rows(scribe, kind, count, out / f"{kind}_{part}", seed)
    return scribe


def train(out: Path, arm: str, seed: int, steps: int) -> Path:
    """One run, by the same command as any other."""
    name = f"{arm.replace(' ', '_')}_{seed}"
    sources = [{"path": str(out / f"{kind}_train"), "weight": weight} for kind, weight in ARMS[arm].items()]
    heldout = {kind: str(out / f"{kind}_heldout") for kind in ("text", "speech", "asr", "interleaved")}
    command = {
        "config": CONFIG, "name": name, "runs_dir": out / "runs", "seed_everything": seed, "trainer.max_steps": steps,
        "model.vocab": out / "vocab.json", "model.lm": out / "shape", "model.new_rows.seed": seed,
        "data.train": json.dumps(sources), "data.val": json.dumps(heldout), "data.seed": seed,
    }  # fmt: skip
    words = [word for key, value in command.items() for word in (f"--{key}", str(value))]
    subprocess.run([sys.executable, "-m", "speechlm.fit", *words], check=True, cwd=ROOT)
    return out / "runs" / name


def asked(scribe: Scribe, question: Question, way: str) -> list[tuple[np.ndarray, int]]:
    """Ids of a question with each of its answers, and where the answer begins; one voice for all of them.

    The space before an answer is the answer's in writing, and a pause of the question's in speech.
    """
    vocab, heard, spoken = scribe.vocab, way[0] == "S", way[-1] == "S"
    begin, end = vocab.control("<|begin_of_audio|>"), vocab.control("<|end_of_audio|>")

    def say(text: str) -> list[int]:
        voice = np.random.default_rng(key_of(question.prompt) % 2**32)
        return vocab.speech_to_ids(scribe.world.spoken(text, voice)).tolist()

    made = []
    for option in question.options:
        if heard and spoken:
            opening = [begin, *say(question.prompt + " ")]
            ids = [begin, *say(f"{question.prompt} {option}")]
        else:
            opening = [begin, *say(question.prompt), end] if heard else scribe.read(question.prompt)
            opening += [begin] * spoken
            ids = opening + (say(option) if spoken else scribe.read(" " + option))
        made.append((np.array(ids), len(opening)))
    return made


@torch.inference_mode()
def mean_log_probs(lm: torch.nn.Module, sequences: list[tuple[np.ndarray, int]]) -> np.ndarray:
    """(N,) mean log-probability of each sequence from its opening on."""
    longest = max(len(ids) for ids, _ in sequences)
    batch = torch.zeros(len(sequences), longest, dtype=torch.long)
    for row, (ids, _) in enumerate(sequences):
        batch[row, : len(ids)] = torch.from_numpy(ids)
    log_probs = lm(input_ids=batch).logits[:, :-1].float().log_softmax(-1).gather(2, batch[:, 1:, None])[..., 0]
    return np.array([float(log_probs[n, start - 1 : len(ids) - 1].mean()) for n, (ids, start) in enumerate(sequences)])


def ask(scribe: Scribe, run: Path) -> dict[str, dict[str, list[bool]]]:
    """Which questions a run answers rightly, by way and by whether the fact is only written."""
    lm = load_stage(run).lm
    made: dict[str, dict[str, list[bool]]] = {way: {"written only": [], "also spoken": []} for way in WAYS}
    for question in track(questions(scribe.world.facts), description=run.name):
        for way in WAYS:
            scores = mean_log_probs(lm, asked(scribe, question, way))
            told = "written only" if question.fact.written_only else "also spoken"
            made[way][told].append(bool(scores[0] > scores[1:].max()))  # a tie is no answer
    return made


def share(answers: list[list[bool]], draws: int = 2000) -> dict[str, float]:
    """Mean over seeds and facts with its 95 % interval, both drawn with replacement."""
    right = np.array(answers, float)
    rng = np.random.default_rng(0)
    seeds = rng.integers(len(right), size=(draws, len(right)))
    facts = rng.integers(right.shape[1], size=(draws, 1, right.shape[1]))
    low, high = np.quantile(right[seeds[..., None], facts].mean((1, 2)), [0.025, 0.975])
    return {"mean": float(right.mean()), "low": float(low), "high": float(high)}


@torch.inference_mode()
def heldout_losses(out: Path, run: Path, rows: int = 64) -> dict[str, float]:
    """Mean loss of a run on the first held-out rows of each kind, in nats per id."""
    stage, made = load_stage(run), {}
    for kind in TEMPLATES:
        folder = RowFolder(out / f"{kind}_heldout")
        count = min(rows, len(folder))
        made[kind] = float(
            stage.score(batch_of([folder.locate(i) for i in range(count)], count, ROW_LEN)).losses.mean()
        )
    return made


def summarise(
    answers: dict[str, list[dict[str, dict[str, list[bool]]]]],
) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """Shares of right answers by arm, way and kind of fact."""
    return {
        arm: {way: {told: share([one[way][told] for one in seeds]) for told in seeds[0][way]} for way in WAYS}
        for arm, seeds in answers.items()
    }


def show(results: dict[str, dict[str, dict[str, dict[str, float]]]]) -> str:
    """A Markdown table."""
    rows = ["| facts | question → answer | " + " | ".join(results) + " |", "|---" * (2 + len(results)) + "|"]
    for told in ("written only", "also spoken"):
        for way in WAYS:
            cells = [results[arm][way][told] for arm in results]
            shown = [f"{100 * c['mean']:.0f} [{100 * c['low']:.0f}, {100 * c['high']:.0f}]" for c in cells]
            rows.append(f"| {told} | {way} | " + " | ".join(shown) + " |")
    return "\n".join(rows)


def main() -> None:
    """Train, ask, tell."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/closed_world"))
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--people", type=int, default=100)
    parser.add_argument("--documents", type=int, default=20_000, help="of each kind")
    args = parser.parse_args()
    scribe = prepare(args.out.resolve(), World(args.people), args.documents)
    answers: dict[str, list[dict[str, dict[str, list[bool]]]]] = {arm: [] for arm in ARMS}
    losses: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    for seed in args.seeds:
        for arm in ARMS:
            run = train(args.out.resolve(), arm, seed, args.steps)
            answers[arm].append(ask(scribe, run))
            losses[arm].append(heldout_losses(args.out.resolve(), run))
        results = summarise(answers)
        print(show(results), flush=True)
        record = {
            "steps": args.steps,
            "seeds": len(answers[arm]),
            "world": asdict(scribe.world),
            "results": results,
            "losses": losses,
        }
        write_text_atomic(args.out / "closed_world.json", json.dumps({**provenance(), **record}, indent=1))


if __name__ == "__main__":
    main()
