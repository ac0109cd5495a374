"""Eight cards, as their makers describe them: bandwidths, multiprocessors, and what their units multiply.

`estimate.py` makes the time of a token and of a prompt of it. All eight are of sm_80 or later, so all have the
kernels for tensor cores.
"""

from dataclasses import dataclass

from hotcold.engine.settings import one_of
from hotcold.errors import SettingError

MMA_ON_HOPPER = 0.63
"""Of Hopper's tensor rates, which need `wgmma`: what `mma.sync` reaches, which the kernels use. As Luo et al. measured
it ("Dissecting the NVIDIA Hopper Architecture through Microbenchmarking and Multiple Level Analysis", 2025, 6.2)."""


@dataclass(frozen=True)
class Card:
    """What a maker says of a card.

    Attributes:
        gbps: of its memory, 10^9 bytes a second.
        n_sm: multiprocessors. ghz: of their clock, boosted.
        int8, halves: of its tensor cores without sparsity, 10^12 operations a second, two a product; of F16 and of BF16
            alike, added up in float32.
        floats: float32 without tensor cores, in the same unit.
        bus_gbps: what a copy from page-locked memory reaches, one way.
        memory: bytes.
        by_mma: of the rates of its tensor cores, what `mma.sync` can reach.
    """

    title: str
    gbps: float
    n_sm: int
    ghz: float
    int8: float
    halves: float
    floats: float
    bus_gbps: float
    memory: int
    by_mma: float = 1.0


# NVIDIA's figures. RTX 3090: "NVIDIA Ampere GA102 GPU Architecture". RTX 4090: "NVIDIA Ada GPU Architecture". RTX 5090:
# "NVIDIA RTX Blackwell GPU Architecture". A100: "NVIDIA A100 Tensor Core GPU Architecture". H100: "NVIDIA H100 Tensor
# Core GPU Architecture". H200: its data sheet. RTX 3060 and 4060 Ti are in no such paper: their multiprocessors do in a
# clock what those of the large card do. GeForce cards multiply halves half as fast where the sum is a float32.
GIB = 1 << 30
CARDS = {
    "rtx3060": Card("GeForce RTX 3060", 360, 28, 1.78, 102, 25.5, 12.7, 25, 12 * GIB),
    "rtx3090": Card("GeForce RTX 3090", 936, 82, 1.70, 284, 71, 35.6, 25, 24 * GIB),
    "rtx4060ti": Card("GeForce RTX 4060 Ti", 288, 34, 2.54, 176.5, 44.1, 22.1, 12, 16 * GIB),
    "rtx4090": Card("GeForce RTX 4090", 1008, 128, 2.52, 660.6, 165.2, 82.6, 25, 24 * GIB),
    "rtx5090": Card("GeForce RTX 5090", 1792, 170, 2.41, 838, 209.5, 104.8, 50, 32 * GIB),
    "a100": Card("A100 80GB PCIe", 1935, 108, 1.41, 624, 312, 19.5, 25, 80 * GIB),
    "h100": Card("H100 SXM", 3350, 132, 1.98, 1979, 989.5, 66.9, 50, 80 * GIB, MMA_ON_HOPPER),
    "h200": Card("H200 SXM", 4800, 132, 1.98, 1979, 989.5, 66.9, 50, 141 * 10**9, MMA_ON_HOPPER),
}


def card_named(name: str) -> Card:
    """A card of the table; SettingError for a name that it has not, and for several."""
    if "," in name:
        more = f"name one, and a budget for each, such as --vram-budget {','.join(['8GB'] * len(name.split(',')))}"
        raise SettingError("--card", name, "several cards are modelled as alike", more)
    one_of("--card", name, tuple(CARDS))
    return CARDS[name]


def card_like(description: str) -> Card | None:
    """The card of the table that a driver's description names, as "NVIDIA GeForce RTX 4090"; the longest title wins."""
    titles = sorted(CARDS.values(), key=lambda card: len(card.title), reverse=True)
    return next(
        (card for card in titles if card.title.split(" PCIe")[0].split(" SXM")[0] in description), None
    )
