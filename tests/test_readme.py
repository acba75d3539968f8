"""Every command that the docs show exists, with the modules, files and arguments it names."""

import ast
import importlib.util
import itertools
import re
import runpy
import shlex
import textwrap
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def commands(page: Path) -> list[str]:
    """Lines of the page's bash blocks, continued lines joined, prompts and comments left out."""
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]


def python_calls(line: str) -> list[list[str]]:
    """The words behind `python` of every call in a line."""
    calls = []
    for part in re.split(r"&&|;|\|(?!\|)", line):
        words = shlex.split(part)
        for i, word in enumerate(words):
            if re.fullmatch(r"(.*/)?python3?|torchrun", word):
                calls.append(words[i + 1 :])
                break
    return calls


ALL = [(page.name, line) for page in PAGES for line in commands(page)]


def test_the_readme_shows_two_commands_first():
    first, second = commands(ROOT / "README.md")[:2]
    assert "venv" in first and "speechlm.tour" in first
    assert "[dev]" in second and "pytest" in second


@pytest.mark.parametrize(("page", "line"), ALL, ids=[f"{page}: {line[:60]}" for page, line in ALL])
def test_a_shown_command_names_what_exists(page: str, line: str):
    for words in python_calls(line):
        if "-m" in words and words[words.index("-m") + 1].split(".")[0] in ("speechlm", "datamodules"):
            module = words[words.index("-m") + 1]
            assert importlib.util.find_spec(module) is not None, f"{module} does not exist"
        elif words and words[0].endswith(".py"):
            assert (ROOT / words[0]).is_file(), f"{words[0]} does not exist"
        for flag, value in itertools.pairwise(words):
            if flag == "--config":
                assert (ROOT / value).is_file(), f"{value} does not exist"


def arguments_of(line: str) -> list[tuple[str, list[str]]]:
    """(module, the words behind it) of every call of a module of ours in a line."""
    calls = [words for words in python_calls(line) if "-m" in words]
    behind = [words[words.index("-m") + 1 :] for words in calls]
    return [(words[0], words[1:]) for words in behind if words[0].split(".")[0] in ("speechlm", "datamodules")]


SHOWN = [(page, module, words) for page, line in ALL for module, words in arguments_of(line)]


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
@pytest.mark.parametrize(("page", "module", "words"), SHOWN, ids=[f"{page}: {module}" for page, module, _ in SHOWN])
def test_a_shown_command_takes_the_arguments_it_is_shown_with(
    page: str, module: str, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    subcommands = list(itertools.takewhile(lambda word: not word.startswith("-"), words))
    monkeypatch.setattr("sys.argv", [module, *subcommands, "--help"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module(module, run_name="__main__", alter_sys=False)
    known = capsys.readouterr().out
    assert stopped.value.code == 0
    for word in words:
        if word.startswith("--"):
            flag = re.split(r"\+?=|\.init_args", word)[0]
            assert re.search(rf"{re.escape(flag)}\b", known), f"{module} has no {word}"


def blocks(page: Path, language: str) -> list[str]:
    """A page's blocks of a language, those inside of lists set back to the margin."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^\1```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [textwrap.dedent(block) for _, block in found]


def test_shown_python_parses_and_imports_what_exists():
    shown = [(page.name, block) for page in PAGES for block in blocks(page, "python")]
    assert len(shown) > 5
    for page, block in shown:
        for node in ast.walk(ast.parse(block)):
            if (
                isinstance(node, ast.ImportFrom)
                and node.module
                and node.module.split(".")[0] in ("speechlm", "datamodules")
            ):
                module = importlib.import_module(node.module)
                missing = [alias.name for alias in node.names if not hasattr(module, alias.name)]
                assert not missing, f"{page}: {node.module} has no {missing}"


def test_shown_yaml_parses_and_names_classes_that_exist():
    shown = [(page.name, block) for page in PAGES for block in blocks(page, "yaml")]
    assert len(shown) > 5
    for page, block in shown:
        assert isinstance(yaml.safe_load(block), dict | list), page
        for module, name in re.findall(r"class_path: ((?:speechlm|datamodules|callbacks)[\w.]*)\.(\w+)", block):
            assert hasattr(importlib.import_module(module), name), f"{page}: {module} has no {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_inside_the_repository_lead_somewhere(page: Path):
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_ci_runs_the_commands_of_the_readme():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    first, second = commands(ROOT / "README.md")[:2]
    for part in [*second.split("&&"), first.split("&&")[-1]]:
        assert part.strip() in script, f".ci/run does not run `{part.strip()}`"


def test_configs_that_docs_name_exist():
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    named = set(re.findall(r"configs/[\w./-]+\.yaml", text))
    assert named and not [name for name in named if not (ROOT / name).is_file()]
    assert all(isinstance(yaml.safe_load((ROOT / name).read_text()), dict) for name in named)
