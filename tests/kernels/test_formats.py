"""Sizes that both sides agree on."""

import pytest

from hotcold.kernels import formats


@pytest.mark.parametrize(("kv_type", "number"), [("f16", 2), ("f32", 4), ("q8_0", 34 / 32)])
@pytest.mark.parametrize("head_dim", [32, 96, 128])
def test_the_cache_of_the_host_has_whole_blocks(kv_type: str, number: float, head_dim: int) -> None:
    for n_ctx in (1, 64, 65):
        wanted = -(-n_ctx // 64) * 64 * head_dim * number
        assert formats.host_kv_bytes(kv_type, n_ctx, head_dim) == wanted
    assert formats.host_kv_block_bytes(kv_type, head_dim) % 64 == 0


def test_odd_heads_are_filled_up_to_whole_vectors() -> None:
    assert formats.host_kv_block_bytes("f16", 17) == formats.host_kv_block_bytes("f16", 32) == 64 * 32 * 2


@pytest.mark.parametrize(
    ("n_rows", "groups"), [(0, 1), (64, 1), (65, 2), (11008, 172), (16384, 256), (65536, 256), (65537, 257)]
)
def test_no_group_has_more_rows_than_a_tile(n_rows: int, groups: int) -> None:
    assert formats.n_groups(n_rows) == groups


@pytest.mark.parametrize("n_ff", [11008, 14336, 16384])
def test_a_tenth_of_the_rows_is_at_most_one_for_each_warp_of_a_block(n_ff: int) -> None:
    """More would make a second round, nearly empty."""
    assert n_ff / 10 <= 8 * formats.n_groups(n_ff)
