"""Which positions the KV caches of an executor's sequences hold."""

from hotcold.engine.plan.plan import Plan
from hotcold.errors import DoesNotFitError, SettingError


class Slots:
    """Sequences with a KV cache each, and what is still in it.

    Caches of layers with a window hold the last positions alone; what they have written over is gone, and only a text
    that starts again at position 0 brings it back.
    """

    def __init__(self, plan: Plan) -> None:
        self._n_ctx, self._windows = plan.n_ctx, plan.model.windows
        self._held = min((cache.n_positions for cache in plan.caches), default=plan.n_ctx)
        self._oldest = [0] * plan.n_slots

    def oldest(self, slot: int = 0) -> int:
        """Up to which position a slot's windows have been written over."""
        return self._oldest[slot]

    def set_oldest(self, position: int, slot: int = 0) -> None:
        """Say so of caches that were not filled by runs."""
        self._oldest[slot] = position

    def can_go_on(self, n_past: int, slot: int = 0) -> bool:
        """Whether a slot's caches still hold what a token at position n_past sees."""
        windows = self._windows
        return windows is None or max(0, n_past + 1 - windows.size) >= self._oldest[slot] or n_past == 0

    def take(self, n_past: int, n: int, slot: int) -> None:
        """Keep in mind what n positions from n_past on write over.

        Raises:
            SettingError: no such slot.
            DoesNotFitError: positions that the slot's caches do not hold.
        """
        if not 0 <= slot < len(self._oldest):
            bound = f"0 to {len(self._oldest) - 1}"
            raise SettingError("slot", slot, bound, "load the model with more n_slots")
        if n_past < 0 or n_past + n > self._n_ctx:
            raise DoesNotFitError(
                "positions in use", n_past + n, f"the context holds {self._n_ctx}", "raise n_ctx"
            )
        if not self.can_go_on(n_past, slot):
            bound = f"a window's cache holds what positions from {self._oldest[slot]} on see"
            raise DoesNotFitError("position to go on from", n_past, bound, "start again at position 0")
        before = self._oldest[slot] if n_past else 0
        self._oldest[slot] = max(before, n_past + n - self._held)
