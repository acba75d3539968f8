"""A folder to work in: `python -m speechlm.start my_project` copies configs, embedded data and Slurm scripts there.

An installed package has them inside; every command of the documentation is meant to be run in such a folder, or in a clone.
"""

import argparse
import shutil
from pathlib import Path

from speechlm.hidden_secrets import hide_secrets

SHIPPED = ("configs", "assets", "slurm")


def shipped() -> Path:
    """The folder that holds what is shipped: inside of an installed package, else the repository.

    Raises:
        FileNotFoundError: neither is complete.
    """
    inside, clone = Path(__file__).parent / "shipped", Path(__file__).parents[1]
    for folder in (inside, clone):
        if all((folder / name).is_dir() for name in SHIPPED):
            return folder
    raise FileNotFoundError(f"{', '.join(SHIPPED)} are in neither {inside} nor {clone}; install the package again")


def start(folder: Path) -> list[Path]:
    """Copy what is shipped into a folder; files that are there already stay as they are.

    Returns:
        What was copied.
    """
    source, copied = shipped(), []
    for name in SHIPPED:
        for path in sorted((source / name).rglob("*")):
            to = folder / path.relative_to(source)
            if path.is_file() and "__pycache__" not in path.parts and not to.exists():
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, to)
                copied.append(to)
    return copied


def main(arguments: list[str] | None = None) -> None:
    """Parse and copy."""
    hide_secrets()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="made if it is not there; what it holds is kept")
    folder = parser.parse_args(arguments).folder
    copied = start(folder)
    print(f"{len(copied)} files copied; now: cd {folder} && python -m speechlm.tour")


if __name__ == "__main__":
    main()
