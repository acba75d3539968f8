"""A text tokenizer of transformers, such as its folder's tokenizer.json says and nothing else."""

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.models.auto.tokenization_auto import get_tokenizer_config

#: Classes that are all in their tokenizer.json.
WHOLE = ("TokenizersBackend", "PreTrainedTokenizerFast")


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or of a name on the hub.

    For some kinds of models, Qwen2 among them, `AutoTokenizer` takes the kind's own class, whatever class the tokenizer's config
    names, and rebuilds normalisation and splitting as that class has them: beside a model of that shape any other tokenizer
    then gives other ids, without a word. Where the config names a class that is all in tokenizer.json, that is read here.
    No code of the folder is run.
    """
    if get_tokenizer_config(str(path)).get("tokenizer_class") in WHOLE:
        return PreTrainedTokenizerFast.from_pretrained(path)
    return AutoTokenizer.from_pretrained(path, trust_remote_code=False)
