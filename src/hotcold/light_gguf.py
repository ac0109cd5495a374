"""The gguf package, but for what only writing files and converting take. A leaf, as `errors` is.

Its `__init__` imports all of it, YAML and tokenizers too: 50 ms of a start that needs the tables of types alone.
"""

import sys
from importlib import import_module
from importlib.util import find_spec, module_from_spec


def lighten() -> None:
    """Let this process begin with gguf's constants; whatever else is asked for brings the whole package.

    For the command alone: in a program that uses hotcold as a library the package is that program's.
    """
    spec = find_spec("gguf")
    if "gguf" in sys.modules or spec is None or spec.loader is None:
        return
    loader, package = spec.loader, module_from_spec(spec)
    sys.modules["gguf"] = package
    try:
        constants = import_module("gguf.constants")
    except ImportError:  # another version's
        del sys.modules["gguf"]
        return
    names = vars(package)
    names |= {name: value for name, value in vars(constants).items() if not name.startswith("_")}

    def whole(name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        names.pop("__getattr__", None)
        loader.exec_module(package)
        return getattr(package, name)

    names["__getattr__"] = whole
