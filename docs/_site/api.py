"""Pages of the reference: one for each package, its modules in order, from their docstrings. A hook of mkdocs."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
#: Packages by what a reader looks for, in the order of the way from sound to sound.
PACKAGES = {
    "speechlm": "Verbs and contracts",
    "speechlm.tokens": "What a sequence is",
    "speechlm.stages": "Stages",
    "speechlm.nn": "Networks and losses",
    "speechlm.engines": "Engines",
    "speechlm.evals": "Metrics",
    "speechlm.serving": "Serving",
    "speechlm.checkpoint": "Checkpoints",
    "speechlm.planning": "The planner",
    "speechlm.cluster": "Batch jobs",
    "speechlm.checks": "The doctor's checks",
    "datamodules": "Data",
    "datamodules.recipes": "Corpora",
    "callbacks": "Callbacks",
}


def modules_of(package: str) -> list[str]:
    """Modules of a package, by name; none of the packages below it."""
    folder = ROOT / package.replace(".", "/")
    return sorted(f"{package}.{path.stem}" for path in folder.glob("*.py") if path.stem != "__init__")


def page_of(package: str, title: str) -> str:
    """The page's Markdown."""
    blocks = [f"::: {module}\n" for module in modules_of(package)]
    return f"# {title}\n\n`{package}`\n\n" + "\n".join(blocks)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for every package that is there."""
    for package, title in PACKAGES.items():
        if modules_of(package):
            content = page_of(package, title)
            files.append(File.generated(config, f"api/{package}.md", content=content))
    return files
