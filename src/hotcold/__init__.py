"""hotcold: runs large language models that do not fit the GPU.

    from hotcold import load
    with load("model.gguf", n_ctx=512) as engine:
        logits = engine.logits([1, 270, 265])
        for piece in engine.generate("Once upon a time", max_tokens=64, temp=0.0):
            print(piece, end="", flush=True)

`load` and `Engine` are imported at first use, since their kernels take a moment.
"""

TYPE_CHECKING = False  # as typing has it, which takes longer to import than all of this
if TYPE_CHECKING:
    from typing import Any

    from hotcold.engine.generation import Engine as Engine
    from hotcold.engine.generation import load as load

    __version__: str

__all__ = ["Engine", "__version__", "load"]


def __getattr__(name: str) -> "Any":
    if name == "__version__":
        from importlib import metadata

        return metadata.version("hotcold")
    if name in ("Engine", "load"):
        from hotcold.engine import generation

        return getattr(generation, name)
    raise AttributeError(f"module 'hotcold' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
