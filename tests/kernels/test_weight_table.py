"""One table of weight types: what the loader, both sides and the docs say comes from it."""

import type_table

from hotcold.engine.model.model import MATRIX_TYPES
from hotcold.kernels.cpu.weight_types import BY_ID
from hotcold.kernels.weight_table import WEIGHT_TYPES


def test_the_docs_have_the_table_of_the_code() -> None:
    page = type_table.PAGE.read_text(encoding="utf-8")
    assert page == type_table.put_into(page, type_table.table()), "python bench/type_table.py --write"


def test_loader_and_cpu_have_the_types_of_the_table() -> None:
    assert set(WEIGHT_TYPES) == MATRIX_TYPES == {kind for kind in WEIGHT_TYPES if int(kind) in BY_ID}
    assert len(BY_ID) == len(WEIGHT_TYPES)


def test_kernels_of_two_types_have_two_names() -> None:
    assert len({row.ending for row in WEIGHT_TYPES.values()}) == len(WEIGHT_TYPES)
