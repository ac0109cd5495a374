"""What a profile shows, as text and as JSON."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotcold.engine.profile.profile import Profile


def as_json(profile: Profile, model: str) -> dict[str, Any]:
    """All figures by name; shares are from 0 to 1."""
    firing = profile.firing
    by_first, own = profile.stability()
    return {
        "model": model,
        "of": profile.of,
        "n_tokens": profile.n_tokens,
        "n_chunks": profile.n_chunks,
        "all_chunks": profile.all_chunks,
        "firing": None if firing is None else firing.tolist(),
        "never": (profile.counts == 0).mean(1).tolist(),
        "half_by": half_by(profile).tolist(),
        "covered": [{"share": share, "covered": part} for share, part in profile.covered()],
        "held": [{"share": h.share, "fixed": h.fixed, "recent": h.recent} for h in profile.hit_rates],
        "n_followed": profile.n_followed,
        "second_half": {"by_first_half": by_first, "by_its_own": own} if _has_halves(profile) else None,
    }


def half_by(profile: Profile) -> NDArray[np.float64]:
    """The least share of each layer's neurons that has half of what is counted in it: float64 [n_layer]."""
    sums = np.cumsum(-np.sort(-profile.counts, axis=1), axis=1)
    shares: NDArray[np.float64] = ((sums < sums[:, -1:] / 2).sum(1) + 1) / sums.shape[1]
    return shares


def _has_halves(profile: Profile) -> bool:
    return profile.n_chunks > profile.all_chunks // 2 > 0


def lines(profile: Profile, activation: str) -> Iterator[str]:
    """The report, a line each of at most 80 columns."""
    if profile.n_chunks < profile.all_chunks:
        yield f"{profile.n_chunks} of {profile.all_chunks} chunks are counted"
    firing, never, half = profile.firing, (profile.counts == 0).mean(1), half_by(profile)
    if firing is None:
        yield f"{activation.upper()}: no neuron is ever idle, so a token reads every row, wherever it lies;"
        yield "counted is how much each matters: |hidden| times the length of its row of down;"
        yield "hotcold calibrate measures what leaving out those that add little costs"
        yield "layer  half of it by"
        yield from (f"{i:>5}  {part:>13.1%}" for i, part in enumerate(half))
    else:
        yield "layer  fire on a token  half of it by  never fire"
        yield from (
            f"{i:>5}  {firing[i]:>15.1%}  {half[i]:>13.1%}  {never[i]:>10.1%}" for i in range(firing.size)
        )
        yield f"  all  {firing.mean():>15.1%}"
    yield ""
    if profile.hit_rates:
        followed = f"of the first {profile.n_followed}"
        yield f"the hottest    hold   {followed:>17}   a cache of the last used"
        for (share, part), held in zip(profile.covered(), profile.hit_rates, strict=True):
            yield f"{share:>11.0%}  {part:>6.1%}   {held.fixed:>17.1%}   {held.recent:>24.1%}"
    else:
        yield "the hottest   hold"
        yield from (f"{share:>11.0%}  {part:>5.1%}" for share, part in profile.covered())
    if _has_halves(profile):
        by_first, own = profile.stability()
        yield f"of the second half: held by the first half's hottest 20% {by_first:.1%}, by its own {own:.1%}"
