"""A key that is in the environment, or looks like one, is in nothing that a process leaves."""

import ast
import os
import subprocess
import sys

import pytest

from tests.verbs import ROOT, VERBS, parsed

KEY = "0123456789abcdef0123456789abcdef01234567"
HUB = "hf_" + "A" * 30

PROGRAM = f"""
import logging, sys, warnings
before = logging.StreamHandler(sys.stderr)
logging.getLogger("early").addHandler(before)
from speechlm.hidden_secrets import hide_secrets
hide_secrets(); hide_secrets()
key = {KEY!r}
print("printed", key, {HUB!r})
print("to stderr", key, file=sys.stderr)
logging.getLogger("early").warning("logged %s", key)
warnings.warn(f"warned {{key}}")
try:
    raise ValueError(f"caught {{key}}")
except ValueError:
    logging.getLogger("early").exception("with a traceback")
raise RuntimeError(f"died with {{key}}")
"""


def test_nothing_that_is_printed_logged_or_raised_shows_a_key():
    env = {**os.environ, "WANDB_API_KEY": KEY, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=env, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 1 and KEY not in said and HUB not in said
    for word in ("printed", "to stderr", "logged", "warned", "caught", "died with"):
        assert f"{word} <redacted>" in said, word


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_hides_secrets_first(verb: str):
    (main,) = [one for one in parsed(verb).body if isinstance(one, ast.FunctionDef) and one.name == "main"]
    assert ast.unparse(main.body[1]) == "hide_secrets()"
