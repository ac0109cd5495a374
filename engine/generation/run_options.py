"""What `load` can be told beside the file. Light to import."""

from dataclasses import dataclass

from hotcold.engine.model.context import DEFAULT_N_BATCH


@dataclass(frozen=True)
class RunOptions:
    """How a model is to run.

    Attributes:
        n_ctx: positions of the KV cache; None: the model's own length up to 4096.
        n_batch: prompt tokens that run together, clamped to n_ctx.
        threads: None: the physical cores within the process's affinity and quota.
        sparsity: "auto", "exact", "off", "predictor" or "threshold"; see `sparsity.resolve_sparsity`.
        head_sparsity: "auto": of a model with a profile of the head (SmallThinker's) a token by itself computes the
            rows that this lists, where the head lies; the other logits are -infinity. "off": all of them.
        sparse_pred_threshold: predictor outputs at or above it count as active; None: the environment
            variable LLAMA_SPARSE_PRED_THRESHOLD, else the file's.
        device: "auto" (the first card if it can be used), "cpu", "cuda", "cuda:N", "emulated" or "emulated:N"; several
            cards with commas, "cuda:0,cuda:1" or "emulated:0,emulated:1".
        vram_budget: GPU memory to use: "auto" (what is free), 0, "8GiB", a number of GiB, "80%"; for several cards
            one that counts for each, or as many, "8GB,6GB".
        kv_type: "f16", "f32" or "q8_0", numbers of the KV cache.
        n_slots: sequences that have a KV cache of their own, each of n_ctx positions; with several
            head_sparsity is "off".
        force_pretokenizer: how a byte-level BPE vocabulary cuts text into words, whatever the file says: a
            name of `pretokenizers.PRETOKENIZERS`.
        ffn_activation: "relu", "silu" or "gelu", what the FFN has whatever the file says; None: the file's.
        strict: refuse whatever would run elsewhere, or with less, than was asked for.
        mlock: keep what the CPU reads of the file in memory, where the system allows it.
        no_mmap: read the file whole into memory instead of mapping it.
        no_graphs: launch each kernel of a device by itself.
        stream_batch: tokens of a prompt's batch from which on a device does all of it, and the rows that it lacks are
            sent to it; 0: never. None: from where that takes less time, by what bus and CPU do; never on the emulated
            device, which is slower than the CPU.
        check_tensors: look at every block first, and refuse a file with a scale that is NaN or infinite.
    """

    n_ctx: int | None = None
    n_batch: int = DEFAULT_N_BATCH
    threads: int | None = None
    sparsity: str = "auto"
    sparse_pred_threshold: float | None = None
    device: str = "auto"
    vram_budget: float | str = "auto"
    kv_type: str = "f16"
    force_pretokenizer: str | None = None
    ffn_activation: str | None = None
    strict: bool = False
    mlock: bool = False
    no_mmap: bool = False
    no_graphs: bool = False
    check_tensors: bool = False
    head_sparsity: str = "auto"
    n_slots: int = 1
    stream_batch: int | None = None
