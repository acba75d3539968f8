"""The released language model's form: against what its own code computes, written here once more from its description."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from speechlm.nn.causal_lm import NewRows
from speechlm.nn.glm4voice_lm import convert_released, read_config, released_vocab, save_released
from speechlm.nn.hf_export import extended_tokenizer
from speechlm.stages.speech_lm import SpeechLM
from speechlm.tokens.clock import Clock
from tests.text_corpus import make_tokenizer

WIDTH, HEADS, GROUPS, HEAD, FFN, LAYERS, ROWS = 8, 4, 2, 4, 12, 2, 168_960
CONFIG = {
    "model_type": "chatglm", "padded_vocab_size": ROWS, "hidden_size": WIDTH, "ffn_hidden_size": FFN, "num_layers": LAYERS,
    "num_attention_heads": HEADS, "multi_query_attention": True, "multi_query_group_num": GROUPS, "kv_channels": HEAD,
    "add_qkv_bias": True, "add_bias_linear": False, "rmsnorm": True, "post_layer_norm": True, "hidden_dropout": 0.0,
    "attention_dropout": 0.0, "apply_residual_connection_post_layernorm": False, "layernorm_epsilon": 1.5625e-7,
    "rope_ratio": 1, "seq_length": 8192, "tie_word_embeddings": False, "eos_token_id": [151329, 151336, 151338],
    "pad_token_id": 151329,
}  # fmt: skip
LAST = 168_736  # code 16383


def released_state() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def made(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * 0.4

    state = {
        "transformer.embedding.word_embeddings.weight": made(ROWS, WIDTH),
        "transformer.rotary_pos_emb.inv_freq": made(HEAD // 4),
        "transformer.encoder.final_layernorm.weight": made(WIDTH) + 1,
        "transformer.output_layer.weight": made(ROWS, WIDTH),
    }
    for layer in range(LAYERS):
        prefix = f"transformer.encoder.layers.{layer}."
        state |= {
            prefix + "input_layernorm.weight": made(WIDTH) + 1,
            prefix + "post_attention_layernorm.weight": made(WIDTH) + 1,
            prefix + "self_attention.query_key_value.weight": made((HEADS + 2 * GROUPS) * HEAD, WIDTH),
            prefix + "self_attention.query_key_value.bias": made((HEADS + 2 * GROUPS) * HEAD),
            prefix + "self_attention.dense.weight": made(WIDTH, HEADS * HEAD),
            prefix + "mlp.dense_h_to_4h.weight": made(2 * FFN, WIDTH),
            prefix + "mlp.dense_4h_to_h.weight": made(WIDTH, FFN),
        }
    return state


def reference_logits(state: dict[str, Tensor], ids: Tensor) -> Tensor:
    """(S,) ids -> (S, V) logits as the released code computes them."""

    def norm(x: Tensor, name: str) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1.5625e-7) * state[name]

    def rotated(x: Tensor) -> Tensor:  # (S, heads, HEAD): the first half of a head, neighbours in pairs
        size = len(x)
        angle = torch.arange(size)[:, None] / 10_000 ** (torch.arange(0, HEAD // 2, 2) / (HEAD // 2))
        cos, sin = angle.cos()[:, None], angle.sin()[:, None]
        pair = x[..., : HEAD // 2].reshape(size, x.shape[1], HEAD // 4, 2)
        turned = torch.stack([pair[..., 0] * cos - pair[..., 1] * sin, pair[..., 1] * cos + pair[..., 0] * sin], -1)
        return torch.cat([turned.flatten(2), x[..., HEAD // 2 :]], -1)

    x = state["transformer.embedding.word_embeddings.weight"][ids]
    for layer in range(LAYERS):
        p = f"transformer.encoder.layers.{layer}."
        y = norm(x, p + "input_layernorm.weight")
        qkv = F.linear(
            y, state[p + "self_attention.query_key_value.weight"], state[p + "self_attention.query_key_value.bias"]
        )
        q, k, v = (
            part.view(len(ids), -1, HEAD) for part in qkv.split([HEADS * HEAD, GROUPS * HEAD, GROUPS * HEAD], -1)
        )
        q, k = rotated(q), rotated(k)
        k, v = (part.repeat_interleave(HEADS // GROUPS, 1) for part in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k) / HEAD**0.5
        scores = scores.masked_fill(~torch.ones(len(ids), len(ids), dtype=torch.bool).tril(), -torch.inf)
        heard = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).flatten(1)
        x = x + F.linear(heard, state[p + "self_attention.dense.weight"])
        y = norm(x, p + "post_attention_layernorm.weight")
        gate, up = F.linear(y, state[p + "mlp.dense_h_to_4h.weight"]).chunk(2, -1)
        x = x + F.linear(F.silu(gate) * up, state[p + "mlp.dense_4h_to_h.weight"])
    return F.linear(norm(x, "transformer.encoder.final_layernorm.weight"), state["transformer.output_layer.weight"])


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A released folder in two files."""
    folder = tmp_path_factory.mktemp("released")
    state = released_state()
    names = sorted(state)
    for number, part in enumerate((names[:9], names[9:]), 1):
        save_file({name: state[name] for name in part}, folder / f"model-0000{number}-of-00002.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


@pytest.fixture(scope="module")
def converted(released: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("converted") / "glm"
    convert_released(released, out)
    return out


IDS = torch.tensor([151331, 151333, 42, 151343, LAST, 152353, LAST, 151344, 151328, 0])


def test_transformers_computes_what_the_released_code_does(converted: Path):
    model = AutoModelForCausalLM.from_pretrained(converted).eval()
    with torch.no_grad():
        logits = model(IDS[None]).logits[0]
    torch.testing.assert_close(logits, reference_logits(released_state(), IDS), rtol=1e-4, atol=1e-4)


def test_training_starts_from_the_released_rows_and_goes_out_again_as_it_came_in(
    released: Path, converted: Path, tmp_path: Path
):
    stage = SpeechLM(Clock(), str(converted / "vocab.json"), str(converted), new_rows=NewRows(form="keep"))
    torch.testing.assert_close(
        stage.lm(IDS[None]).logits[0], reference_logits(released_state(), IDS), rtol=1e-4, atol=1e-4
    )
    save_released(stage.lm, stage.vocab, str(make_tokenizer(tmp_path / "text")), tmp_path / "out", torch.float32)
    written = {
        name: value for file in (tmp_path / "out").glob("*.safetensors") for name, value in load_file(file).items()
    }
    expected = released_state()
    del expected["transformer.rotary_pos_emb.inv_freq"]
    assert written.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(written[name], value, rtol=0, atol=0)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert {name: config[name] for name in CONFIG} == CONFIG
    convert_released(tmp_path / "out", tmp_path / "again")
    assert read_config(tmp_path / "out").to_dict() == read_config(released).to_dict() | {"dtype": None}


def test_the_ids_are_the_released_ones():
    vocab = released_vocab()
    assert (vocab.control("<|begin_of_audio|>"), vocab.control("<|end_of_audio|>")) == (151_343, 151_344)
    assert vocab.speech_to_ids(torch.tensor([0, 16_383])).tolist() == [152_353, LAST]
    assert vocab.control("<|reserved_151347|>") == 151_347 and len(vocab) == LAST + 1 <= ROWS


def test_the_last_code_has_a_name(tmp_path: Path):
    """The released tokenizer's strings end one before it."""
    tokenizer = extended_tokenizer(str(make_tokenizer(tmp_path)), released_vocab())
    assert tokenizer.convert_tokens_to_ids(["<|audio_0|>", "<|audio_16383|>"]) == [152_353, LAST]
    chat = [{"role": "user", "content": "<|audio_16383|>"}]
    text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert text == "[gMASK]<sop><|user|>\n<|audio_16383|><|assistant|>streaming_transcription\n"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rmsnorm": False}, "rmsnorm"),
        ({"add_bias_linear": True}, "add_bias_linear"),
        ({"padded_vocab_size": 168_704}, "168704 embeddings"),
        ({"num_layers": 3}, "lack"),
    ],
)
def test_another_model_is_refused(change: dict, said: str, released: Path, tmp_path: Path):
    folder = tmp_path / "other"
    folder.mkdir()
    for file in released.glob("*.safetensors"):
        (folder / file.name).symlink_to(file)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **change}))
    with pytest.raises(ValueError, match=said):
        convert_released(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_s_folder_is_no_language_model(tmp_path: Path):
    with pytest.raises(ValueError, match=r"no config\.json"):
        convert_released(tmp_path, tmp_path / "out")
    AutoTokenizer.from_pretrained(make_tokenizer(tmp_path)).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="padded_vocab_size"):
        convert_released(tmp_path, tmp_path / "out")
