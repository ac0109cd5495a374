"""Old files of Mixtral have one tensor an expert; what is written has all of a layer's in one, as files are today."""

import re
from collections import defaultdict

from hotcold.gguf_io.reader import GGUFFile
from hotcold.gguf_io.tensors import TensorInfo

OF_ONE = re.compile(r"(blk\.\d+\.ffn_(?:gate|up|down))\.(\d+)\.weight")


def experts_of(file: GGUFFile) -> dict[str, list[TensorInfo]]:
    """By the name of the tensor that they become, each expert's matrix in order.

    Those that lack one, or are not alike in shape and type, stay as they are.
    """
    found: dict[str, dict[int, TensorInfo]] = defaultdict(dict)
    for info in file.tensors.values():
        if named := OF_ONE.fullmatch(info.name):
            found[f"{named[1]}_exps.weight"][int(named[2])] = info
    return {name: [of[e] for e in range(len(of))] for name, of in found.items() if _are_alike(of)}


def _are_alike(of: dict[int, TensorInfo]) -> bool:
    return set(of) == set(range(len(of))) and len({(info.ne, info.type) for info in of.values()}) == 1
