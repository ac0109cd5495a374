"""What runs, and how, in words."""

from hotcold.engine.generation.generation import Engine


def description(engine: Engine) -> tuple[str, ...]:
    """What runs, and how, a line each."""
    model, run = engine.model, f"sparsity {engine.sparsity}: {engine.sparsity_reason}"
    if engine.sparsity == "predictor":
        run += f", threshold {model.sparse_threshold:g}"
        if exact := model.exact_layers:
            run += f"; without a predictor, so exact: layers {', '.join(map(str, exact))}"
    template = ("the file has a chat template, which hotcold chat and serve use",)
    shape = f"{model.n_layer} layers, n_embd {model.n_embd}, n_ff {model.n_ff}"
    return (
        f"model {engine.file.path}: {model.architecture}, {shape}, {engine.file.size / 1e6:.1f} MB",
        f"n_ctx {engine.n_ctx}, n_batch {engine.n_batch}, {engine.n_threads} threads",
        run,
        *([engine.executor.prompts] if engine.executor.prompts else ()),
        *(template if "tokenizer.chat_template" in engine.file.metadata else ()),
    )
