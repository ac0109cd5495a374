"""Keys of a GGUF file's metadata that are not llama.cpp's."""

SPARSE_THRESHOLD = "powerinfer.sparse_threshold"
FFN_ACTIVATION = "hotcold.ffn_activation"
END_IDS = "hotcold.end_token_ids"  # ids that end a text, for which llama.cpp has no key
ACTIVATION_COUNTS = "hotcold.activation.{i}"
