"""hotcold: runs large language models that do not fit the GPU."""
