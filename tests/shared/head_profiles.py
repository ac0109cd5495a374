"""SmallThinkers with a profile of the head: two matrices, one behind the other in one tensor."""

from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from hotcold.gguf_io import blocks, open_gguf
from hotcold.gguf_io.convert.copied import new_tensor, with_more

F32 = NDArray[np.float32]
NAME = "lm_head_profiler.weight"
ROW = 269  # of the head


def with_profile(
    source: Path, path: Path, fc1: F32, fc2: F32, kind: GGMLQuantizationType = GGMLQuantizationType.F32
) -> Path:
    """The file once more, with a profile of this type; a rank of 32 at least for those of blocks."""
    flat = np.concatenate([fc1.reshape(-1), fc2.reshape(-1)]).astype(np.float32)
    rows = flat.reshape(-1, len(fc1) if flat.size % 32 else 32)  # its shape says nothing of either matrix
    with_more(source, path, {}, [new_tensor(NAME, rows, kind)], force=True)
    return path


def head_of(path: Path) -> F32:
    """The numbers of a tied head."""
    with open_gguf(path) as file:
        info = file.tensors["token_embd.weight"]
        return np.asarray(blocks.dequantize(file.data(info.name), info.type), np.float32).reshape(info.shape)


def by_sign(path: Path, rank: int = 2) -> tuple[F32, F32]:
    """Even rows are listed where the logit of ROW is positive, odd ones where it is negative."""
    head = head_of(path)
    odd = np.arange(len(head)) % 2
    fc1, fc2 = np.zeros((rank, head.shape[1]), np.float32), np.zeros((len(head), rank), np.float32)
    fc1[:2] = head[ROW], -head[ROW]
    fc2[:, :2] = np.stack([1 - odd, odd], 1)
    return fc1, fc2
