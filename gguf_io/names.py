"""Keys of a GGUF file's metadata, and tensors, that are not llama.cpp's."""

SPARSE_THRESHOLD = "powerinfer.sparse_threshold"
FFN_ACTIVATION = "hotcold.ffn_activation"
END_IDS = "hotcold.end_token_ids"  # ids that end a text, for which llama.cpp has no key
ACTIVATION_COUNTS = "hotcold.activation.{i}"
CALIBRATED = "hotcold.threshold.{what}"  # see engine/model/calibration.py
EXACT_LAYERS = "hotcold.exact_layers"  # of a file with predictors, the layers that have none, ascending
HEAD_PROFILE = "lm_head_profiler.weight"  # PowerInfer's: H rows of n_embd, then n_vocab rows of H


def threshold_name(i: int, has_experts: bool) -> str:
    """The tensor of layer i's thresholds, float32 [n_ff], or of all experts' [n_expert, n_ff]."""
    return f"blk.{i}.ffn_threshold{'_exps' if has_experts else ''}"
