"""Which cases of a product stay in the quick run, and that the others are slow."""

import subprocess
import sys
from itertools import combinations, product
from pathlib import Path

import pytest
from pairwise import covering

HERE = Path(__file__).parent


def cases_of(*sizes: int) -> list[dict[str, int]]:
    """A full product."""
    return [dict(zip("abcdefg", values, strict=False)) for values in product(*map(range, sizes))]


@pytest.mark.parametrize(
    ("sizes", "most"), [((3, 5, 2, 2, 4), 24), ((4, 4, 4, 4), 26), ((2, 2, 2), 4), ((9, 2, 2), 19)]
)
def test_every_pair_of_values_meets(sizes: tuple[int, ...], most: int) -> None:
    """In about as few cases as the two longest parameters have pairs."""
    cases = cases_of(*sizes)
    taken = [cases[i] for i in covering(cases)]
    for a, b in combinations("abcdefg"[: len(sizes)], 2):
        assert {(case[a], case[b]) for case in taken} == {(case[a], case[b]) for case in cases}
    assert len(taken) <= most


@pytest.mark.parametrize("sizes", [(), (1,), (7,), (3, 5)])
def test_products_of_fewer_than_three_stay_whole(sizes: tuple[int, ...]) -> None:
    cases = cases_of(*sizes)
    assert covering(cases) == list(range(len(cases)))


def test_parameters_that_go_together_count_as_one() -> None:
    cases = [{"a": i, "b": i, "c": j, "d": k} for i, j, k in product(range(4), range(3), range(2))]
    assert len(covering(cases)) == 12


PRODUCT = """
import pytest

@pytest.mark.pairwise
@pytest.mark.parametrize("a", [0, 1, 2, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("b", [0, 1, 2, pytest.param(3, marks=pytest.mark.gpu)])
@pytest.mark.parametrize("c", [0, 1, 2])
def test_a_product(a, b, c): pass

@pytest.mark.parametrize("a", [0, 1, 2])
@pytest.mark.parametrize("b", [0, 1, 2])
@pytest.mark.parametrize("c", [0, 1, 2])
def test_another(a, b, c): pass

@pytest.mark.sample(3)
@pytest.mark.parametrize("a", [0, 1, 2, 3, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("b", [0, 1, pytest.param(2, marks=pytest.mark.gpu)])
def test_a_sample(a, b): pass
"""


@pytest.mark.parametrize(
    ("chosen", "n_product", "n_other", "n_sample"),
    [("not slow", 18, 27, 7), pytest.param("", 48, 27, 15, marks=pytest.mark.slow)],
)
def test_a_marked_product_is_quick_in_pairs_and_whole_with_slow_tests(
    tmp_path: Path, chosen: str, n_product: int, n_other: int, n_sample: int
) -> None:
    """Nine of 27, and the nine of a device: they cost nothing without one, and little with one; three of eight."""
    (tmp_path / "test_product.py").write_text(PRODUCT)
    (tmp_path / "conftest.py").write_text((HERE / "conftest.py").read_text())
    command = [sys.executable, "-m", "pytest", "-c", str(HERE.parent / "pyproject.toml"), "--rootdir"]
    command += [str(tmp_path), "-n0", "-m", chosen, "-p", "no:cacheprovider", "--collect-only", "-q"]
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.count("::test_a_product[") == n_product
    assert done.stdout.count("::test_another[") == n_other
    assert done.stdout.count("::test_a_sample[") == n_sample
