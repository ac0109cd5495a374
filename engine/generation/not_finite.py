"""Why a model computes NaN or infinity: a key or value that its cache could not hold, or a damaged file."""

import numpy as np
from numpy.typing import NDArray

from hotcold.engine.run.executor import Executor
from hotcold.errors import FileError, HotcoldError, SettingError
from hotcold.gguf_io import GGUFFile

MOST_F16 = 65504
REMEDY = "use --kv-type f32 (library: kv_type='f32')"


def check_finite(logits: NDArray[np.float32], executor: Executor, file: GGUFFile) -> None:
    """Refuse logits that are not all finite.

    Raises:
        SettingError: a key or value was too large for the cache's type.
        FileError: the weights themselves lead there.
    """
    if not np.isfinite(logits).all():
        raise not_finite("NaN" if np.isnan(logits).any() else "infinity", executor, file)


def not_finite(what: str, executor: Executor, file: GGUFFile) -> HotcoldError:
    """The refusal of logits with NaN or infinity in them."""
    kv_type, layer = executor.plan.kv_type, executor.host.overflow()
    if layer is not None:
        bound = f"a key or value of layer {layer} is above {MOST_F16}, the most that it holds"
        return SettingError("kv_type", kv_type, bound, REMEDY)
    others = "" if kv_type == "f32" else f", or a key or value too large for a {kv_type} cache: {REMEDY}"
    return FileError(
        file.path.name, f"the model computes {what}", "finite logits", f"the file may be damaged{others}"
    )
