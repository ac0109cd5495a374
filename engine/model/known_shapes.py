"""The sizes of well-known models, as their authors published them in their configurations."""

from hotcold.engine.model.shape import Shape

MIXTURES = {
    "mixtral-8x7b": Shape(
        *("llama", 32, 4096, 14336, 32, 8, 32000, 32768), n_expert=8, n_expert_used=2, n_ff_exp=14336
    ),
    "mixtral-8x22b": Shape(
        *("llama", 56, 6144, 16384, 48, 8, 32768, 65536), n_expert=8, n_expert_used=2, n_ff_exp=16384
    ),
    "qwen3-30b-a3b": Shape(
        *("qwen3moe", 48, 2048, 6144, 32, 4, 151936, 40960),
        head_dim=128,
        n_expert=128,
        n_expert_used=8,
        n_ff_exp=768,
    ),
    "qwen3-235b-a22b": Shape(
        *("qwen3moe", 94, 4096, 12288, 64, 4, 151936, 40960),
        head_dim=128,
        n_expert=128,
        n_expert_used=8,
        n_ff_exp=1536,
    ),
    "gpt-oss-20b": Shape(
        *("gpt-oss", 24, 2880, 2880, 64, 8, 201088, 131072),
        head_dim=64,
        window=128,
        n_expert=32,
        n_expert_used=4,
        n_ff_exp=2880,
    ),
    "gpt-oss-120b": Shape(
        *("gpt-oss", 36, 2880, 2880, 64, 8, 201088, 131072),
        head_dim=64,
        window=128,
        n_expert=128,
        n_expert_used=4,
        n_ff_exp=2880,
    ),
    "smallthinker-4b-a0.6b": Shape(
        *("smallthinker", 32, 1536, 768, 12, 2, 151936, 32768),
        tied=True,
        head_dim=128,
        n_expert=32,
        n_expert_used=4,
        n_ff_exp=768,
    ),
    "smallthinker-21b-a3b": Shape(
        *("smallthinker", 52, 2560, 768, 28, 4, 151936, 16384),
        head_dim=128,
        window=4096,
        n_expert=64,
        n_expert_used=6,
        n_ff_exp=768,
    ),
    "olmoe-7b": Shape(
        *("olmoe", 16, 2048, 1024, 16, 16, 50304, 4096), n_expert=64, n_expert_used=8, n_ff_exp=1024
    ),
    "qwen2-57b-a14b": Shape(
        *("qwen2moe", 28, 3584, 18944, 28, 4, 151936, 32768),
        n_expert=64,
        n_expert_used=8,
        n_ff_exp=2560,
        n_ff_shexp=20480,
    ),
}
"""Mixtures of experts."""

SHAPES = {
    "llama-2-7b": Shape("llama", 32, 4096, 11008, 32, 32, 32000, 4096),
    "llama-2-13b": Shape("llama", 40, 5120, 13824, 40, 40, 32000, 4096),
    "llama-2-70b": Shape("llama", 80, 8192, 28672, 64, 8, 32000, 4096),
    "llama-3-8b": Shape("llama", 32, 4096, 14336, 32, 8, 128256, 8192),
    "llama-3-70b": Shape("llama", 80, 8192, 28672, 64, 8, 128256, 8192),
    "mistral-7b": Shape("llama", 32, 4096, 14336, 32, 8, 32000, 32768),
    "smollm2-135m": Shape("llama", 30, 576, 1536, 9, 3, 49152, 8192, tied=True),
    "relullama-7b": Shape("llama", 32, 4096, 11008, 32, 32, 32000, 4096, "relu"),
    "relullama-13b": Shape("llama", 40, 5120, 13824, 40, 40, 32000, 4096, "relu"),
    "relullama-70b": Shape("llama", 80, 8192, 28672, 64, 8, 32000, 4096, "relu"),
    "bamboo-7b": Shape("bamboo", 32, 4096, 14336, 32, 8, 32000, 32768, "relu"),
    "falcon-7b": Shape("falcon", 32, 4544, 18176, 71, 1, 65024, 2048, "gelu", two_norms=False),
    "falcon-40b": Shape("falcon", 60, 8192, 32768, 128, 8, 65024, 2048, "relu"),
    "falcon-180b": Shape("falcon", 80, 14848, 59392, 232, 8, 65024, 2048, "gelu"),
    "opt-125m": Shape("opt", 12, 768, 3072, 12, 12, 50272, 2048, "relu", True, 2050),
    "opt-1.3b": Shape("opt", 24, 2048, 8192, 32, 32, 50272, 2048, "relu", True, 2050),
    "opt-2.7b": Shape("opt", 32, 2560, 10240, 32, 32, 50272, 2048, "relu", True, 2050),
    "opt-6.7b": Shape("opt", 32, 4096, 16384, 32, 32, 50272, 2048, "relu", True, 2050),
    "opt-13b": Shape("opt", 40, 5120, 20480, 40, 40, 50272, 2048, "relu", True, 2050),
    "opt-30b": Shape("opt", 48, 7168, 28672, 56, 56, 50272, 2048, "relu", True, 2050),
    "opt-66b": Shape("opt", 64, 9216, 36864, 72, 72, 50272, 2048, "relu", True, 2050),
    "opt-175b": Shape("opt", 96, 12288, 49152, 96, 96, 50272, 2048, "relu", True, 2050),
    "qwen2-0.5b": Shape("qwen2", 24, 896, 4864, 14, 2, 151936, 32768, tied=True),
    "qwen2-1.5b": Shape("qwen2", 28, 1536, 8960, 12, 2, 151936, 32768, tied=True),
    "qwen2-7b": Shape("qwen2", 28, 3584, 18944, 28, 4, 152064, 32768),
    "qwen2-72b": Shape("qwen2", 80, 8192, 29568, 64, 8, 152064, 32768),
    "qwen3-0.6b": Shape("qwen3", 28, 1024, 3072, 16, 8, 151936, 40960, tied=True, head_dim=128),
    "qwen3-1.7b": Shape("qwen3", 28, 2048, 6144, 16, 8, 151936, 40960, tied=True, head_dim=128),
    "qwen3-4b": Shape("qwen3", 36, 2560, 9728, 32, 8, 151936, 40960, tied=True, head_dim=128),
    "qwen3-8b": Shape("qwen3", 36, 4096, 12288, 32, 8, 151936, 40960, head_dim=128),
    "qwen3-14b": Shape("qwen3", 40, 5120, 17408, 40, 8, 151936, 40960, head_dim=128),
    "qwen3-32b": Shape("qwen3", 64, 5120, 25600, 64, 8, 151936, 40960, head_dim=128),
    "phi-3-mini": Shape("phi3", 32, 3072, 8192, 32, 32, 32064, 4096),
    "phi-3-medium": Shape("phi3", 40, 5120, 17920, 40, 10, 32064, 4096),
    "phi-4-mini": Shape("phi3", 32, 3072, 8192, 24, 8, 200064, 131072, tied=True),
    "granite-3-2b": Shape("granite", 40, 2048, 8192, 32, 8, 49155, 131072, tied=True),
    "granite-3-8b": Shape("granite", 40, 4096, 12800, 32, 8, 49155, 131072, tied=True),
    "gemma-3-1b": Shape("gemma3", 26, 1152, 6912, 4, 1, 262144, 32768, tied=True, head_dim=256, window=512),
    "gemma-3-4b": Shape(
        "gemma3", 34, 2560, 10240, 8, 4, 262144, 131072, tied=True, head_dim=256, window=1024
    ),
    "gemma-3-12b": Shape(
        "gemma3", 48, 3840, 15360, 16, 8, 262144, 131072, tied=True, head_dim=256, window=1024
    ),
    "gemma-3-27b": Shape(
        "gemma3", 62, 5376, 21504, 32, 16, 262144, 131072, tied=True, head_dim=128, window=1024
    ),
    **MIXTURES,
}
