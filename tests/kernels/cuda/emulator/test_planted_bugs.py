"""Bugs planted in the real kernels, one at a time: each is found, and named with its lines.

A bug is an edit of the program's text. `race` bugs must be found by the race build in every order of
threads and blocks; the others by the checked build, in the orders that can show them.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kernel_launches import Put
from planted_bug import Bug
from planted_bugs import BUGS

from hotcold.kernels.cuda.device.device import Device
from hotcold.kernels.cuda.device.driver import KernelFault
from hotcold.kernels.cuda.device.sources import SOURCES, program


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Broken kernels do not go into the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def text_of(bug: Bug) -> str:
    path = SOURCES / bug.file
    types = [(name,) for name in bug.types]
    return program(path if path.is_file() else Path(__file__).with_name(bug.file), types=types)


def place_of(source: str, snippet: str) -> str:
    """`file:line` of the only line with a snippet, by the program's own #line directives."""
    found, file, number = [], "", 0
    for line in source.splitlines():
        if line.startswith("#line"):
            _, at, name = line.split(" ", 2)
            file, number = name.strip('"'), int(at)
            continue
        if snippet in line:
            found.append(f"{file}:{number}")
        number += 1
    assert len(found) == 1, f"{snippet!r} stands in {found}"
    return found[0]


def test_there_are_enough_of_them() -> None:
    assert len(BUGS) >= 15


def test_every_bug_has_its_place() -> None:
    """The text that is edited stands once, as does each line that is to be named: a change of a kernel breaks it."""
    for name, bug in BUGS.items():
        source = text_of(bug)
        assert source.count(bug.old) == 1, name
        for snippet in bug.lines:
            place_of(source.replace(bug.old, bug.new), snippet)


@pytest.mark.slow
@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_found(open_emulated: Callable[..., Device], put: Put, name: str) -> None:
    bug = BUGS[name]
    broken = text_of(bug).replace(bug.old, bug.new)
    for order in bug.orders:
        device = open_emulated(source=broken, build_kind=bug.build_kind, order=order)
        bug.run(device, put)
        with pytest.raises(KernelFault, match=bug.said) as caught:
            device.synchronize()
        named = re.findall(r"\w+\.(?:cu|h):\d+", str(caught.value))
        assert len(named) >= (2 if "race, " in str(caught.value) else 1)
        assert {place_of(broken, snippet) for snippet in bug.lines} <= set(named)


@pytest.mark.slow
@pytest.mark.parametrize("name", BUGS)
def test_without_the_bug_nothing_is_found(open_emulated: Callable[..., Device], put: Put, name: str) -> None:
    bug = BUGS[name]
    for order in bug.orders:
        device = open_emulated(source=text_of(bug), build_kind=bug.build_kind, order=order)
        bug.run(device, put)
        device.synchronize()
