"""Frequencies of the rotation: against their definition in kernels/ref.py, and which factors count."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType

from hotcold.engine.model.load import load_model
from hotcold.engine.model.model import Weight
from hotcold.engine.model.rope import RopeScaling, frequencies, read_scaling
from hotcold.gguf_io import open_gguf
from hotcold.kernels import ref


@pytest.mark.parametrize("n_rot", [2, 16, 24, 64, 128])
@pytest.mark.parametrize(("factor", "n_ctx_orig"), [(4.0, 64), (1.0, 4096), (40.0, 4096), (0.5, 7)])
@pytest.mark.parametrize("betas", [(32.0, 1.0), (4.0, 2.0)])
def test_yarn_is_its_definition(
    n_rot: int, factor: float, n_ctx_orig: int, betas: tuple[float, float]
) -> None:
    got = frequencies(n_rot, 10000.0, RopeScaling(1 / factor, 1.0, n_ctx_orig, betas), None)
    assert got == pytest.approx(ref.yarn_frequencies(n_rot, 10000.0, factor, n_ctx_orig, *betas), rel=1e-12)


def test_yarn_keeps_short_waves_and_divides_long_ones() -> None:
    got = frequencies(64, 10000.0, RopeScaling(1 / 8, 1.0, 512, (32.0, 1.0)), None)
    plain = ref.rope_frequencies(64, 10000.0)
    assert got[:3] == pytest.approx(plain[:3])
    assert got[-10:] == pytest.approx(plain[-10:] / 8)
    assert np.all((got <= plain) & (got >= plain / 8))


def test_other_scaling_is_its_definition() -> None:
    factors = np.linspace(1, 3, 8, dtype=np.float32)
    got = frequencies(16, 500.0, RopeScaling(0.25), factors)
    assert got == pytest.approx(ref.rope_frequencies(16, 500.0, 0.25, factors), rel=1e-12)


@pytest.mark.parametrize(
    ("keys", "wanted"),
    [
        ({"type": "yarn", "factor": 4.0}, RopeScaling(0.25, 1 + 0.1 * np.log(4), 512, (32.0, 1.0))),
        ({"type": "yarn"}, RopeScaling(1.0, 1.0, 512, (32.0, 1.0))),
        (
            {"type": "yarn", "factor": 2.0, "attn_factor": 0.5, "original_context_length": 64},
            RopeScaling(0.5, 0.5 * (1 + 0.1 * np.log(2)), 64, (32.0, 1.0)),
        ),
        ({"type": "yarn", "yarn_beta_fast": 8.0}, RopeScaling(1.0, 1.0, 512, (8.0, 1.0))),
        ({"type": "longrope", "factor": 32.0, "attn_factor": 1.25}, RopeScaling(1.0, 1.25, 512)),
        ({"type": "none", "factor": 0.0}, RopeScaling(1.0, 1.0, 512)),
        ({"attn_factor": 2.0}, RopeScaling(1.0, 2.0, 512)),
    ],
)
def test_keys(keys: dict[str, Any], wanted: RopeScaling, data: Path) -> None:
    with open_gguf(data / "llamacpp" / "llama.f16.gguf") as file:
        file.metadata = {**file.metadata, **{f"llama.rope.scaling.{name}": v for name, v in keys.items()}}
        got = read_scaling(file, "llama", 512)
    for field in dataclasses.fields(RopeScaling):
        assert getattr(got, field.name) == pytest.approx(getattr(wanted, field.name))


def test_the_factors_are_those_of_the_context(data: Path) -> None:
    with open_gguf(data / "llamacpp" / "llama.f16.gguf") as file:
        model = load_model(file)
    long, short = (Weight(name, GGMLQuantizationType.F32, (8,), 32) for name in ("long", "short"))
    scaling = RopeScaling(n_ctx_orig=64)
    model = dataclasses.replace(model, rope_scaling=scaling, rope_factors_long=long, rope_factors_short=short)
    assert [model.rope_factors(n) for n in (1, 64, 65, 4096)] == [short, short, long, long]
    whole = Weight("rope_freqs.weight", GGMLQuantizationType.F32, (8,), 32)
    assert dataclasses.replace(model, rope_freqs=whole).rope_factors(65) is whole
