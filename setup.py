"""Puts `configs/` into the package when it is built, so that a wheel has them; all else is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class WithConfigs(build_py):
    """Builds the package, with the folder of configs inside."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:  # a checkout has them beside the package
            to = Path(self.build_lib) / "recvis_jax" / "configs"
            shutil.rmtree(to, ignore_errors=True)
            shutil.copytree("configs", to, ignore=shutil.ignore_patterns("__pycache__"))


setup(cmdclass={"build_py": WithConfigs})
