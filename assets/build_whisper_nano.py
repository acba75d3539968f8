"""Writes a small Whisper-shaped ASR model with random weights as a Hugging Face folder: what `train_whisper_nano.py` starts from.

    python assets/build_whisper_nano.py OUT --text SENTENCES.txt ... --cuts assets/asterisk-en/train.jsonl.gz ...

The folder loads with `WhisperForConditionalGeneration.from_pretrained` and `AutoTokenizer.from_pretrained`. Its tokenizer is
a byte-pair encoding of English letters: text is lower-cased, accents and punctuation fall away and numbers are spelt out by
the tokenizer itself, so that every user of the folder gets the same targets.
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

SPECIAL = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>"]
PROMPT = SPECIAL[1:]
ONES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
TEENS = ["ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
ABBREVIATIONS = {"mr": "mister", "mrs": "missus", "dr": "doctor"}


def number_rules() -> list[normalizers.Normalizer]:
    """Digits to words: 0-99 and whole hundreds as numbers, anything longer digit by digit."""
    rules = [normalizers.Replace(Regex(r"(?<=\b[1-9])00\b"), " hundred ")]
    rules += [normalizers.Replace(Regex(rf"\b1{i}\b"), f" {word} ") for i, word in enumerate(TEENS)]
    for tens, word in enumerate(TENS, start=2):
        rules.append(normalizers.Replace(Regex(rf"\b{tens}0\b"), f" {word} "))
        rules.append(normalizers.Replace(Regex(rf"\b{tens}(?=[1-9]\b)"), f" {word} "))
    return rules + [normalizers.Replace(str(i), f" {word} ") for i, word in enumerate(ONES)]


def english_normalizer() -> normalizers.Normalizer:
    """Any text -> lower-case letters and apostrophes between single spaces."""
    rules = [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase(), normalizers.Replace("’", "'")]
    rules += number_rules()
    rules += [normalizers.Replace(Regex(rf"\b{short}\."), long) for short, long in ABBREVIATIONS.items()]
    rules += [normalizers.Replace("%", " percent "), normalizers.Replace("&", " and ")]
    rules += [
        normalizers.Replace(Regex(r"[^a-z']+"), " "),
        normalizers.Replace(Regex(r"(?<![a-z])'+|'+(?![a-z])"), " "),
    ]
    return normalizers.Sequence([*rules, normalizers.Replace(Regex(" +"), " "), normalizers.Strip()])


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Learns the pieces; encoding puts Whisper's prompt before a text and <|endoftext|> behind it.

    Args:
        texts: raw sentences.
        vocab_size: pieces and special tokens together.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = english_normalizer()
    bytes_of_words = pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(" ", "merged_with_next"), bytes_of_words])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=vocab_size - len(SPECIAL), show_progress=False))
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=" ".join(PROMPT) + " $A " + SPECIAL[0],
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in SPECIAL],
    )
    end = SPECIAL[0]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=end, eos_token=end, unk_token=end, pad_token=end, model_max_length=448
    )


def build_model(
    tokenizer: PreTrainedTokenizerFast, width: int, layers: tuple[int, int]
) -> WhisperForConditionalGeneration:
    """A Whisper of this width and these (encoder, decoder) layers, heads of 64, with the ids of `tokenizer`."""
    end, start, en, transcribe, notimestamps = tokenizer.convert_tokens_to_ids(SPECIAL)
    shared = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end, "decoder_start_token_id": start}
    config = WhisperConfig(
        vocab_size=len(tokenizer), num_mel_bins=80, d_model=width, encoder_layers=layers[0], decoder_layers=layers[1],
        encoder_attention_heads=width // 64, decoder_attention_heads=width // 64, encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width, suppress_tokens=None, begin_suppress_tokens=None, **shared,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        **shared, is_multilingual=True, lang_to_id={"<|en|>": en}, task_to_id={"transcribe": transcribe},
        no_timestamps_token_id=notimestamps, max_length=448, return_timestamps=False,
    )  # fmt: skip
    return model


def read_texts(text_files: list[Path], cut_files: list[Path]) -> list[str]:
    """Lines of plain text files and transcripts of Lhotse cut manifests."""
    from lhotse import load_manifest_lazy

    lines = [line for path in text_files for line in path.read_text(encoding="utf-8").splitlines()]
    return lines + [cut.supervisions[0].text for path in cut_files for cut in load_manifest_lazy(path)]


def save(folder: Path, model: WhisperForConditionalGeneration, tokenizer: PreTrainedTokenizerFast) -> None:
    """Writes the whole folder, weights in fp16."""
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=80).save_pretrained(folder)
    size = sum(p.stat().st_size for p in folder.iterdir())
    print(
        json.dumps({"parameters": sum(p.numel() for p in model.parameters()), "bytes": size, "vocab": len(tokenizer)})
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument(
        "--text", type=Path, nargs="*", default=[], help="plain text files, a sentence or document a line"
    )
    parser.add_argument("--cuts", type=Path, nargs="*", default=[], help="Lhotse cut manifests with transcripts")
    parser.add_argument("--vocab_size", type=int, default=512)
    parser.add_argument("--width", type=int, default=192, help="a multiple of 64")
    parser.add_argument("--layers", type=int, nargs=2, default=(4, 2), help="of the encoder and of the decoder")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    tokenizer = train_tokenizer(read_texts(args.text, args.cuts), args.vocab_size)
    save(args.out, build_model(tokenizer, args.width, tuple(args.layers)), tokenizer)


if __name__ == "__main__":
    main()
