"""Layers of which a file with predictors says that they have none, and what it may not say."""

from typing import Any

from model_files import FileWith, Metadata, V, described, refused

from hotcold.gguf_io.names import EXACT_LAYERS


def told(*layers: int) -> Metadata:
    return {EXACT_LAYERS: (list(layers), V.ARRAY, V.UINT32)}


def test_what_does_not_agree_is_refused(file_with: FileWith) -> None:
    gone = {"blk.1.fc1.weight": None, "blk.1.fc2.weight": None}
    good = file_with(magic="PWRI", metadata=told(1), changes=gone)
    assert described(good).exact_layers == (1,)
    both: dict[str, Any] = {"magic": "PWRI"}
    refused(file_with, "blk.1.fc1.weight", f"that {EXACT_LAYERS} does not name", **both, changes=gone)
    refused(file_with, "predictor of layer 1", "says that there is none", **both, metadata=told(1))
    half = {"blk.1.fc2.weight": None}
    refused(file_with, "blk.1.fc1.weight", "says that there is none", **both, metadata=told(1), changes=half)
    refused(file_with, "blk.1.fc2.weight", "missing", **both, changes=half)
    for layers, bound in (
        ((2,), "each below 2"),
        ((1, 0), "ascending"),
        ((1, 1), "ascending"),
        ((0, 1), "all 2 layers"),
    ):
        refused(file_with, EXACT_LAYERS, bound, **both, metadata=told(*layers), changes=gone)
    refused(
        file_with, EXACT_LAYERS, "each below 2", **both, metadata={EXACT_LAYERS: (["x"], V.ARRAY, V.STRING)}
    )
