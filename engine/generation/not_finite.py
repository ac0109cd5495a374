"""Why a model computes NaN or infinity: a key or value that its cache could not hold, or a damaged file."""

import numpy as np
from numpy.typing import NDArray

from hotcold.engine.run.executor import Executor
from hotcold.errors import FileError, HotcoldError, SettingError
from hotcold.gguf_io import GGUFFile

MOST_F16 = 65504
REMEDY = "use --kv-type f32 (library: kv_type='f32')"


def check_finite(logits: NDArray[np.float32], executor: Executor, file: GGUFFile) -> None:
    """Refuse logits that are not all finite; what a profile of the head left out is -infinity, and no fault.

    Raises:
        SettingError: a key or value was too large for the cache's type.
        FileError: the weights themselves lead there.
    """
    are_right = logits < np.inf if executor.model.lists_head_rows else np.isfinite(logits)
    if not are_right.all():
        raise not_finite("NaN" if np.isnan(logits).any() else "infinity", executor, file)


def overflow_warning(executor: Executor, n: int, spoils: str = "text", slot: int = 0) -> str:
    """That a key in n positions of a slot was too large for its cache, and no logit shows it; "" if there is none.

    A score of minus infinity leaves its position out; of values nothing can stay hidden.
    """
    layer, kv_type = executor.overflow(n, slot), executor.plan.kv_type
    if layer is None:
        return ""
    return (
        f"a key of layer {layer} is too large for a {kv_type} cache, and the {spoils} may be wrong: {REMEDY}"
    )


def not_finite(what: str, executor: Executor, file: GGUFFile) -> HotcoldError:
    """The refusal of logits with NaN or infinity in them."""
    kv_type, layer = executor.plan.kv_type, executor.overflow()
    if layer is not None:
        most = MOST_F16 * (127 if kv_type == "q8_0" else 1)  # whose scale is a half float
        bound = f"a key or value of layer {layer} is above {most}, the most that it holds"
        return SettingError("kv_type", kv_type, bound, REMEDY)
    others = "" if kv_type == "f32" else f", or a key or value too large for a {kv_type} cache: {REMEDY}"
    return FileError(
        file.path.name, f"the model computes {what}", "finite logits", f"the file may be damaged{others}"
    )
