"""Puts what a run starts from (configs, embedded data, Slurm scripts) into the wheel; all else is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SHIPPED = ("configs", "assets", "slurm")


class BuildWithShipped(build_py):
    """Copies the folders beside the packages into `speechlm/shipped`."""

    def run(self) -> None:
        super().run()
        for name in SHIPPED:
            shutil.copytree(
                Path(__file__).parent / name, Path(self.build_lib, "speechlm", "shipped", name), dirs_exist_ok=True
            )


setup(cmdclass={"build_py": BuildWithShipped})
