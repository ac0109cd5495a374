"""The CPU's mixtures of experts against their oracle: which are chosen, and what they give."""

import mmap

import cpu_operands as checks
import numpy as np
import pytest
from numpy.typing import NDArray

import hotcold.kernels.cpu  # noqa: F401  sets the folder of compiled code
from hotcold.kernels import formats, ref_experts
from hotcold.kernels.cpu import program, rows, sizes

pytestmark = pytest.mark.pairwise
NAMES = {0: "F32", 1: "F16", 30: "BF16", 8: "Q8_0", 2: "Q4_0"}


def chosen_of(logits: checks.Array, n_used: int, gating: str, normed: bool) -> NDArray[np.uint8]:
    """What TOP_K makes of logits: of each token numbers, then weights."""
    n_tokens, n_expert = logits.shape
    out = np.full((n_tokens, 8 * n_used), 0xFF, np.uint8)
    record = {"code": program.TOP_K, "chunks": 2, "x": logits.ctypes.data, "x_stride": 4 * n_expert}
    record |= {"y": out.ctypes.data, "y_stride": 8 * n_used, "n_rows": n_expert, "k": n_used}
    checks.run(
        [record | {"gating": formats.GATINGS[gating], "normed": int(normed), "weight_scale": 1.5}], n_tokens
    )
    return out


def _experts(
    types: tuple[int, int, int],
    data: list[NDArray[np.uint8]],
    biases: list[checks.Array | None],
    x: checks.Array,
    chosen: NDArray[np.uint8],
    activation: str,
) -> checks.Array:
    """The records of an expert FFN, as `engine/host/expert_lowering.py` makes them, and what they leave."""
    (n_tokens, k), n_used, n_expert = x.shape, chosen.shape[1] // 8, 7
    n_ff, n_pairs = len(data[0]) // n_expert, n_tokens * n_used
    x, chosen = np.ascontiguousarray(x), np.ascontiguousarray(chosen)
    at, stride = checks.operand(types[0], x)
    tables = [np.arange(n_expert) * (each.size // n_expert) + each.ctypes.data for each in data]
    groups = np.full(sizes.group_bytes(n_expert, n_pairs), 0xFF, np.uint8)
    places = np.full(n_pairs, -9, np.int64)
    first, second, sums = (
        checks.vectors(n_pairs, n_ff),
        checks.vectors(n_pairs, n_ff),
        checks.vectors(n_pairs, k),
    )
    hidden, gathered, y = (
        program.aligned(n_pairs * 4096),
        program.aligned(n_pairs * stride),
        checks.vectors(n_tokens, k),
    )
    where = {"groups": groups.ctypes.data}

    def strided(name: str, address: int, n_bytes: int) -> checks.Record:
        return {name: address, f"{name}_stride": n_bytes}

    def product(i: int, x: checks.Record, y: checks.Record, shape: tuple[int, int]) -> checks.Record:
        bias = biases[i]
        own = {} if bias is None else {"z": bias.ctypes.data}
        w = {"w": tables[i].ctypes.data, "w_type": types[i], "w_stride": data[i].shape[1]}
        sizes = {"n_rows": shape[0], "k": shape[1]}
        return {"code": program.EXPERT_ROWS, "chunks": 3, **w, **x, **y, **own, **sizes, **where}

    choice = strided("x", chosen.ctypes.data, 8 * n_used)
    group = {"code": program.GROUP, "chunks": 1, **choice, "k": n_used, "n_rows": n_expert}
    group |= {"w": tables[0].ctypes.data, "y": groups.ctypes.data, "z": places.ctypes.data}
    gather = {"code": program.GATHER, "chunks": 2, **strided("x", at.ctypes.data, stride), "k": stride // 4}
    gather |= {**strided("y", gathered.ctypes.data, stride), "n_rows": n_expert, **where}
    inputs = strided("x", gathered.ctypes.data, stride)
    gates, ups = strided("y", first.ctypes.data, 4 * n_ff), strided("y", second.ctypes.data, 4 * n_ff)
    act = {"code": program.ACT_MUL, "chunks": 2, **strided("x", first.ctypes.data, 4 * n_ff), **gates}
    act |= {**strided("z", second.ctypes.data, 4 * n_ff), "k": n_ff, **where}
    act["activation"] = formats.ACTIVATIONS[activation]
    records = [group, gather, product(0, inputs, gates, (n_ff, k)), product(1, inputs, ups, (n_ff, k)), act]
    down = strided("x", first.ctypes.data, 4 * n_ff)
    if sizes.is_quantised(types[2]):
        packed = strided("y", hidden.ctypes.data, sizes.packed_bytes(n_ff))
        records.append({"code": program.PACK, "chunks": 2, **down, **packed, "k": n_ff, **where})
        down = strided("x", hidden.ctypes.data, sizes.packed_bytes(n_ff))
    records.append(product(2, down, strided("y", sums.ctypes.data, 4 * k), (k, n_ff)))
    total = {"code": program.EXPERT_SUM, "chunks": 3, **strided("x", sums.ctypes.data, 4 * k), "k": k}
    total |= {**strided("z", chosen.ctypes.data, 8 * n_used), **strided("y", y.ctypes.data, 4 * k)}
    records.append(total | {"n_used": n_used, "pairs": places.ctypes.data})
    checks.run(records, n_tokens)
    return y


@pytest.mark.parametrize("gating", formats.GATINGS)
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize(("n_expert", "n_used"), [(1, 1), (8, 2), (5, 5), (128, 8)])
def test_top_k(n_expert: int, n_used: int, gating: str, normed: bool) -> None:
    """Numbers and weights of the chosen; two equal logits, of which the first counts."""
    logits = 2 * checks.vectors(5, n_expert, 11)
    logits[0, n_expert // 2 :] = logits[0, n_expert // 2]
    out = chosen_of(logits, n_used, gating, normed)
    ids, w = ref_experts.top_k(logits, n_used, gating, normed, 1.5)
    assert np.array_equal(out[:, : 4 * n_used].copy().view(np.int32), ids)
    checks.close(out[:, 4 * n_used :].copy().view(np.float32), w, "weights of experts")


def test_nan_is_chosen_last() -> None:
    logits = np.array([[np.nan, 3, np.nan, 1]], np.float32)
    chosen = chosen_of(logits, 3, "softmax_chosen", False)
    assert chosen[0, :12].view(np.int32).tolist() == [0, 1, 3]
    assert np.isnan(chosen[0, 12:].view(np.float32)).all()


def check_experts(types: tuple[int, int, int], n_tokens: int, activation: str, biased: bool = False) -> None:
    """The chosen experts alone are read; their sum is the oracle's; a token has the bits that it has alone."""
    n_expert, n_used, k, n_ff = 7, 3, 96, 160
    logits = checks.vectors(n_tokens, n_expert, 12)
    logits[:, 4] = -9
    ids, w = ref_experts.top_k(logits, n_used, "softmax", True, 1.5)
    x, shapes = checks.vectors(n_tokens, k, 13), ((n_ff, k), (n_ff, k), (k, n_ff))
    data, numbers = [], []
    for i, (kind, (n_rows, n)) in enumerate(zip(types, shapes, strict=True)):
        raw, values = checks.weights(kind, n_expert * n_rows, n, 20 + i)
        raw.reshape(n_expert, -1)[np.setdiff1d(np.arange(n_expert), ids)] = 0xFF
        data.append(raw)
        numbers.append(values.reshape(n_expert, n_rows, n))
    biases = [
        checks.vectors(n_expert, n_rows, 30 + i) if biased else None for i, (n_rows, _) in enumerate(shapes)
    ]
    quantised = sizes.is_quantised(types[0])
    assert {sizes.is_quantised(kind) for kind in types} == {quantised}
    gate, up, down = numbers
    wanted = ref_experts.expert_ffn(
        x, (ids, w), gate, up, down, (biases[0], biases[1], biases[2]), activation, quantised
    )
    chosen = chosen_of(logits, n_used, "softmax", True)
    y = _experts(types, data, biases, x, chosen, activation)
    checks.close(y, wanted, f"experts of {types}")
    alone = [
        _experts(types, data, biases, x[t : t + 1], chosen[t : t + 1], activation) for t in range(n_tokens)
    ]
    assert np.array_equal(y.view(np.int32), np.concatenate(alone).view(np.int32)), "bits of experts"


@pytest.mark.parametrize("type_id", checks.SPARSE_TYPES, ids=NAMES.get)
@pytest.mark.parametrize(("activation", "biased"), [("silu", False), ("relu", False), ("swiglu_oai", True)])
@pytest.mark.parametrize("n_tokens", [1, 2, 40])
def test_experts(type_id: int, activation: str, biased: bool, n_tokens: int) -> None:
    check_experts((type_id,) * 3, n_tokens, activation, biased)


@pytest.mark.parametrize("n_tokens", [1, 9])
def test_experts_of_mixed_types(n_tokens: int) -> None:
    check_experts((rows.Q4_0_ID, rows.Q8_0_ID, rows.Q5_0_ID), n_tokens, "silu")


@pytest.mark.skipif(not hasattr(mmap, "MADV_DONTNEED"), reason="the system takes no such advice")
@pytest.mark.parametrize(("n_pages", "n_tokens"), [(3, 1), (2, 3), (1.5, 2)])
def test_advice_is_of_the_pages_of_the_chosen(n_pages: float, n_tokens: int) -> None:
    """Memory that is not needed any more reads as zeros: the chosen experts' pages do, of those that are here."""
    n_expert, n_used, page, absent = 9, 2, mmap.PAGESIZE, 4
    size = int(n_pages * page)
    chosen = np.array([[1, 4], [1, 7], [0, 7]], np.int32)[:n_tokens]
    choices = np.concatenate([chosen, np.zeros_like(chosen)], axis=1)
    maps = [mmap.mmap(-1, n_expert * size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) for _ in range(3)]
    views = [np.frombuffer(each, np.uint8) for each in maps]
    for view in views:
        view[:] = 1
    tables = [np.arange(n_expert) * size + view.ctypes.data for view in views]
    tables[0][absent] = 0
    record = {"code": program.WILL_NEED, "chunks": 2, "n_rows": n_expert, "advice": int(mmap.MADV_DONTNEED)}
    record |= {"x": choices.ctypes.data, "x_stride": 8 * n_used, "k": n_used}
    for name, table in zip(("w", "w1", "w2"), tables, strict=True):
        record |= {name: table.ctypes.data, f"{name}_stride": size}
    checks.run([record], n_tokens)
    heard = {int(e) for e in chosen.flat} - {absent}
    pages = {p for e in heard for p in range(e * size // page, -(-(e + 1) * size // page))}
    for view in views:
        gone = {p for p in range(-(-view.size // page)) if not view[p * page : (p + 1) * page].any()}
        assert gone == pages
