"""Builds `assets/tour-lm`: the shape of the tour's language models, without weights.

python assets/build_tour_lm.py assets
"""

import argparse
from pathlib import Path

from transformers import Qwen2Config

SHAPE = Qwen2Config(
    vocab_size=1152,
    hidden_size=192,
    intermediate_size=512,
    num_hidden_layers=4,
    num_attention_heads=6,
    num_key_value_heads=6,
    max_position_embeddings=512,
    tie_word_embeddings=True,
    bos_token_id=None,
    eos_token_id=507,
    pad_token_id=None,
)


def main() -> None:
    """Write the shape."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    SHAPE.save_pretrained(parser.parse_args().out / "tour-lm")


if __name__ == "__main__":
    main()
