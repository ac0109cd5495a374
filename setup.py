"""Builds the package from the folders themselves: engine/ becomes hotcold.engine, cli.py hotcold.cli.

The links in src/hotcold serve editable installs and type checkers alone, so that a tree that lost them
(an archive unpacked by a tool without links) installs the same files. Everything else is in pyproject.toml.
"""

import sys

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

PACKAGE = "hotcold"
ROOMS = ("engine", "gguf_io", "kernels")
MODELS = "models"  # data without code


class BuildPy(build_py):
    """Takes the module `hotcold.cli` from where it lies."""

    def find_package_modules(self, package, package_dir):
        """(package, module, file) of a package's modules."""
        found = [each for each in super().find_package_modules(package, package_dir) if each[1] != "cli"]
        return found + [(PACKAGE, "cli", "cli.py")] * (package == PACKAGE)


if "editable_wheel" in sys.argv:
    # one folder on the path, which type checkers can follow
    setup(packages=find_packages("src"), package_dir={"": "src"})
else:
    inner = find_packages(".", include=[pattern for room in ROOMS for pattern in (room, f"{room}.*")])
    setup(
        packages=[PACKAGE, f"{PACKAGE}.{MODELS}", *(f"{PACKAGE}.{name}" for name in inner)],
        package_dir={PACKAGE: f"src/{PACKAGE}", **{f"{PACKAGE}.{room}": room for room in (*ROOMS, MODELS)}},
        cmdclass={"build_py": BuildPy},
    )
