"""An engine behind HTTP, for programs that bring a server of their own.

    from hotcold import load, serve
    with load("model.gguf", n_slots=4) as engine:
        application = serve.app(engine)  # ASGI; `hotcold serve` runs the same under uvicorn

See docs/serving.md.
"""

from hotcold.engine.serve.app import ServeOptions, app
from hotcold.engine.serve.shared import Shared

__all__ = ["ServeOptions", "Shared", "app"]
