"""docs/kernels.md names what there is."""

import re
from pathlib import Path

from hotcold.kernels import cpu

DOCS = Path(__file__).parents[2] / "docs"


def test_every_file_of_the_cpus_kernels_has_its_line() -> None:
    (folder,) = cpu.__path__
    files = {path.name for path in Path(folder).glob("*.py")} - {"__init__.py"}
    table = (line for line in (DOCS / "kernels.md").read_text().splitlines() if line.startswith("| `"))
    named = [name for line in table for name in re.findall(r"`(\w+\.py)`", line.split("|")[1])]
    assert sorted(named) == sorted(files)
