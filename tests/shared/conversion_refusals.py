"""Refused conversions: the error, and nothing left behind."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from numpy.typing import NDArray

from hotcold.errors import HotcoldError
from hotcold.gguf_io.convert.conversion import convert

MakeLlama = Callable[..., Any]  # the fixture llama
Save = Callable[[Path, dict[str, NDArray[Any]]], None]  # the fixture save


def contents(folder: Path) -> dict[Path, bytes]:
    """Every file below a folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refusal(folder: Path, out: Path, predictors: Path | None = None, **settings: Any) -> HotcoldError:
    """The error of a conversion, which has left nothing behind."""
    out.parent.mkdir(exist_ok=True)
    before = contents(out.parent)
    with pytest.raises(HotcoldError) as caught:
        convert(folder, predictors, out, settings.pop("outtype", "f16"), **settings)
    assert contents(out.parent) == before
    assert "\n" not in str(caught.value)
    return caught.value
