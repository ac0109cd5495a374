"""From a loaded model to text: loading, generation, sampling, statistics.

`Engine` and `load` are imported at first use, since their kernels take a moment.
"""

TYPE_CHECKING = False  # as typing has it, which takes longer to import than all of this
if TYPE_CHECKING:
    from typing import Any

    from hotcold.engine.generation.generation import Engine as Engine
    from hotcold.engine.generation.loading import load as load

__all__ = ["Engine", "load"]


def __getattr__(name: str) -> "Any":
    if name not in __all__:
        raise AttributeError(f"module 'hotcold.engine.generation' has no attribute {name!r}")
    from hotcold.engine.generation import loading

    return getattr(loading, name)
