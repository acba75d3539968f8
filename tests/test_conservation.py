"""Accounts of verbs: what came in is out or skipped by a reason, or the verb fails."""

import ast
import json
from pathlib import Path

import pytest
import torch

from datamodules.label_folder import Counts
from datamodules.packing import accounts as pack_accounts
from datamodules.recipes import part_writer
from datamodules.recipes.part_writer import PartWriter
from datamodules.sealed import read_sealed, write_sealed
from datamodules.token_folder import TokenFolder
from datamodules.token_shards import write_totals
from speechlm.conservation import Account, Unaccounted
from speechlm.export_account import account_of
from speechlm.tokens import filling
from tests.audio_corpus import cut_of
from tests.tiny_lm import tiny_stage
from tests.token_corpus import corpus, tokenized
from tests.verbs import ROOT, VERBS, parsed

#: The module of each verb in which the account of what it reads is required.
ACCOUNTS = {
    "datamodules.prepare": "datamodules.recipes.part_writer",
    "speechlm.evaluate": "speechlm.evaluate",
    "speechlm.export": "speechlm.export",
    "speechlm.pack": "datamodules.packing",
    "speechlm.prepare_eval": "speechlm.prepare_eval",
    "speechlm.pseudo_label": "datamodules.label_folder",
    "speechlm.resynthesize": "speechlm.resynthesize",
    "speechlm.synthesize": "datamodules.interleaving",
    "speechlm.tokenize": "datamodules.token_shards",
    "speechlm.tokenizer_report": "speechlm.tokenizer_report",
}
#: Verbs that read no corpus from its beginning to its end.
NO_CORPUS = {
    "speechlm.chat": "one turn at a time, each answered or refused",
    "speechlm.doctor": "looks at files, makes nothing of them",
    "speechlm.fit": "goes on for as many steps as it is told; what it can not use is counted by reason in data/skipped",
    "speechlm.interleave_report": "shows documents that synthesize has accounted for, and that account",
    "speechlm.plan": "reads configs",
    "speechlm.start": "copies what is shipped",
    "speechlm.submit": "writes a job",
    "speechlm.tour": "runs other verbs",
    "speechlm.wandb_views": "writes panels",
}


def imported(module: str, seen: set[str]) -> set[str]:
    """A module of the repository and all that it imports of it, also inside of functions."""
    if module in seen or not (ROOT / (module.replace(".", "/") + ".py")).is_file():
        return seen
    seen.add(module)
    for one in ast.walk(parsed(module)):
        if isinstance(one, ast.ImportFrom) and one.module:
            for name in (one.module, *(f"{one.module}.{alias.name}" for alias in one.names)):
                imported(name, seen)
    return seen


def test_every_verb_accounts_for_what_it_reads_or_reads_no_corpus():
    assert sorted([*ACCOUNTS, *NO_CORPUS]) == VERBS
    for verb, module in ACCOUNTS.items():
        assert module in imported(verb, set()), verb
        required = [one for one in ast.walk(parsed(module)) if isinstance(one, ast.Attribute) and one.attr == "require"]
        assert required, f"{module} requires no account"


def test_an_account_that_adds_up_says_so():
    account = Account("cuts", 7, 4, {"missing": 2, "silent": 1, "never": 0})
    assert str(account.require("x")) == "7 cuts in = 4 out + 3 skipped (2 missing, 1 silent)"


@pytest.mark.parametrize(("out", "skipped", "rest"), [(4, 2, 1), (8, 0, -1), (0, 6, 1)])
def test_an_unexplained_remainder_fails_with_the_whole_account(out: int, skipped: int, rest: int):
    with pytest.raises(
        Unaccounted, match=rf"shard 3 does not add up: 7 cuts in = {out} out .*leaves {rest} unexplained"
    ):
        Account("cuts", 7, out, {"missing": skipped}).require("shard 3")


def prepared(folder: Path, found: int) -> None:
    """A part of one cut, of `found` recordings that were counted."""
    with PartWriter(folder / "m.jsonl", 0) as part:
        part.tally.found += found
        part.add(cut_of(folder / "a.flac", num_samples=8000))


def test_a_recording_that_preparing_forgets_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    prepared(tmp_path, 1)
    with pytest.raises(Unaccounted, match="2 recordings found"):
        prepared(tmp_path, 2)
    monkeypatch.setattr(part_writer, "write_lines", lambda content, path: len(list(content)) - 1)
    with pytest.raises(Unaccounted, match="1 cuts in = 0 out"):
        prepared(tmp_path, 1)


def test_a_cut_that_tokenizing_forgets_is_an_error(tmp_path: Path):
    out = tokenized(tmp_path, corpus(tmp_path))
    folder = TokenFolder.find(out)
    assert folder is not None
    whole = read_sealed(folder.commit_path(1))
    for name, message in (("cuts_out", "23 cuts in = 22 out"), ("cuts_in", "22 cuts in = 23 out")):
        write_sealed(folder.commit_path(1), {**whole, name: whole[name] - 1})
        with pytest.raises(Unaccounted, match=message):
            write_totals(folder)
    write_sealed(folder.commit_path(1), {**whole, "cuts_in": 4, "cuts_out": 4})
    with pytest.raises(Unaccounted, match="23 cuts planned = 22 in"):
        write_totals(folder)


def test_what_pseudo_labels_forget_is_an_error():
    counts = Counts(cuts_in=3, heard=2, stretches=4, kept=4)
    with pytest.raises(Unaccounted, match="3 recordings in = 2 heard"):
        [account.require("shard 0") for account in counts.accounts]


def test_ids_that_packing_forgets_are_an_error(monkeypatch: pytest.MonkeyPatch):
    counts = {"documents_in": 2, "documents": 2, "documents_cut": 0, "skipped": {}, "ids_in": 10, "ids_out": 9}
    documents, ids = pack_accounts(counts)
    documents.require("x")
    with pytest.raises(Unaccounted, match="10 ids in = 9 out"):
        ids.require("x")
    assert "ids_in" in json.dumps(vars(filling.Filled()))


def test_every_tensor_of_every_stage_has_a_place_in_an_export(tmp_path: Path):
    lm = tiny_stage(tmp_path, ema_decay=0.5)
    plain, averaged = account_of(lm), account_of(lm, averaged=True)
    assert plain.remainder == averaged.remainder == 0
    assert plain.skipped == {"average of the weights": sum(n.startswith("ema.") for n in lm.state_dict())}
    assert averaged.skipped == {"weights, of which the average is written": plain.skipped["average of the weights"]}
    lm.register_buffer("surprise", torch.zeros(1))
    with pytest.raises(Unaccounted, match="leaves 1 unexplained"):
        account_of(lm).require("runs/x")
