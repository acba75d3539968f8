"""Writes `assets/tour-voice`: the weights that the tour's decoder and vocoder start from, of two runs, in float16.

    python assets/build_tour_voice.py assets/tour-voice --decoder runs/pre_decoder --vocoder runs/pre_vocoder

What is kept of a decoder is the network that decodes, the average; of a vocoder the generator without its judges.
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import save
from torch import nn

from speechlm.files import write_bytes_atomic
from speechlm.load import load_stage
from speechlm.stages.flow_decoder import FlowDecoder
from speechlm.stages.vocoder import Vocoder


def write(network: nn.Module, prefix: str, path: Path) -> None:
    """A network's weights under the names that a stage has for them; they must stay finite in float16."""
    state = {f"{prefix}.{name}": tensor.half().contiguous() for name, tensor in network.state_dict().items()}
    odd = [name for name, tensor in state.items() if not bool(torch.isfinite(tensor).all())]
    if odd:
        raise SystemExit(f"not finite in float16: {odd}")
    write_bytes_atomic(path, save(state))
    print(f"{path}: {sum(tensor.numel() for tensor in state.values()) / 1e6:.2f} M numbers")


def main() -> None:
    """Load both runs and write both files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--decoder", help="run folder")
    parser.add_argument("--vocoder", help="run folder")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.decoder:
        decoder = load_stage(args.decoder)
        assert isinstance(decoder, FlowDecoder)
        write(decoder.used, "network", args.out / "decoder.safetensors")
    if args.vocoder:
        vocoder = load_stage(args.vocoder)
        assert isinstance(vocoder, Vocoder)
        write(vocoder.generator, "generator", args.out / "vocoder.safetensors")


if __name__ == "__main__":
    main()
