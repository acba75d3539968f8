"""What the released inference code computes from tiny weights in the released format, we compute too."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from speechlm.nn.glm4voice import load_tokenizer, ours, theirs
from speechlm.nn.masks import length_mask

GOLDEN = Path(__file__).parent / "golden" / "glm4voice_tokenizer"


def test_released_weights_give_the_released_codes_states_and_logits():
    encoder, decoder = (part.eval() for part in load_tokenizer(GOLDEN))
    expected = load_file(GOLDEN / "expected.safetensors")
    with torch.no_grad():
        encoded = encoder(expected["input_features"], expected["attention_mask"].sum(dim=1))
        logits = decoder.logits(decoder(expected["decoder_input_ids"], encoded.states, encoded.state_lens))
    real = length_mask(encoded.state_lens, encoded.states.shape[1])
    assert torch.equal(encoded.quantized.codes[real], expected["quantized_token_ids"][real])
    torch.testing.assert_close(encoded.states[real], expected["last_hidden_state"][real], atol=1e-4, rtol=0)
    torch.testing.assert_close(logits, expected["logits"], atol=1e-4, rtol=0)


def test_released_training_steps_give_the_released_codebook():
    encoder, _ = load_tokenizer(GOLDEN)
    encoder.train()
    expected = load_file(GOLDEN / "expected_ema.safetensors")
    for step in range(3):
        mask = expected[f"step{step}.attention_mask"]
        with torch.no_grad():
            quantized = encoder(expected[f"step{step}.input_features"], mask.sum(dim=1)).quantized
        encoder.quantizer.update()
        real = mask[:, ::2][:, ::4].bool()
        assert torch.equal(quantized.codes[real], expected[f"step{step}.ids"][real])
        torch.testing.assert_close(quantized.loss, expected[f"step{step}.quantize_loss"][0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(encoder.quantizer.codebook, expected[f"step{step}.codebook"], atol=1e-4, rtol=0)
        torch.testing.assert_close(encoder.quantizer.ema_count, expected[f"step{step}.ema_count"], atol=1e-4, rtol=0)


def test_names_survive_the_way_there_and_back():
    state = load_file(GOLDEN / "model.safetensors")
    encoder = {name: value for name, value in state.items() if name.startswith("model.encoder.")}
    assert theirs(ours(state)).keys() == encoder.keys()
