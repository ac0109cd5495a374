"""Every check by an oracle on a range of sizes, as a program: for the feature levels."""

from attention_checks import check_attention, check_halves
from expert_checks import check_experts, check_top_k
from oracle_checks import (
    K_TYPES,
    ODD,
    OFFSET_TYPES,
    SPARSE_TYPES,
    check_elementwise,
    check_mask,
    check_mul_mat,
    check_order,
    check_pack,
    check_rope,
    check_rows,
    check_sparse_gated_ffn,
)

import hotcold.kernels.cpu  # noqa: F401  sets the folder of compiled code
from hotcold.kernels import formats
from hotcold.kernels.cpu import rows, sizes


def run_all() -> None:
    """Every check on a range of sizes; for the feature levels."""
    check_halves()
    for type_id in (*SPARSE_TYPES, *OFFSET_TYPES):
        for k in ODD[sizes.is_quantised(type_id)]:
            check_rows(type_id, k)
    for type_id in K_TYPES:
        check_rows(type_id, 512)
    for type_id in rows.TYPE_SIZE:
        check_order(type_id, 768)
    check_pack(352)
    for type_id in SPARSE_TYPES:
        check_mul_mat(type_id, 37, 352, 7)
        check_sparse_gated_ffn((type_id,) * 3, 1, 0.3)
        check_sparse_gated_ffn((type_id,) * 3, 5, 0.3)
    for n in (1, 40, 100):
        check_elementwise(n)
    check_rope(20, 12, True)
    for kv_type, head_dim in ((rows.F16_ID, 24), (rows.F32_ID, 17), (rows.Q8_0_ID, 64)):
        for n_past, n_tokens, window in ((70, 1, 0), (509, 5, 0), (530, 3, 100), (40, 24, 0)):
            check_attention(kv_type, (6, 2), head_dim, n_past, n_tokens, window)
    check_mask(205)
    run_experts()


def run_experts() -> None:
    """Those of mixtures of experts."""
    for gating in formats.GATINGS:
        check_top_k(40, 6, gating, True)
    for type_id in SPARSE_TYPES:
        check_experts((type_id,) * 3, 1, "silu")
        check_experts((type_id,) * 3, 40, "swiglu_oai", biased=True)


if __name__ == "__main__":
    run_all()
