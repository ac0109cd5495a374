"""Records which type llama.cpp's quantiser gives each matrix of models of many depths, in mixes.

pip install llama-cpp-python
python tests/data/quantise/record_mixes.py
"""

import ctypes
import json
import tempfile
from itertools import groupby
from pathlib import Path

import llama_cpp
import numpy as np
from gguf import GGUFReader, GGUFWriter, LlamaFileType

HERE = Path(__file__).parent
FILE_TYPES = {
    "q4_k_m": LlamaFileType.MOSTLY_Q4_K_M,
    "q4_k_s": LlamaFileType.MOSTLY_Q4_K_S,
    "q5_k_m": LlamaFileType.MOSTLY_Q5_K_M,
    "q5_k_s": LlamaFileType.MOSTLY_Q5_K_S,
    "q3_k_m": LlamaFileType.MOSTLY_Q3_K_M,
    "q6_k": LlamaFileType.MOSTLY_Q6_K,
}
OF_MIXTURES = FILE_TYPES | {
    "q8_0": LlamaFileType.MOSTLY_Q8_0,
    "q5_1": LlamaFileType.MOSTLY_Q5_1,
    "q5_0": LlamaFileType.MOSTLY_Q5_0,
    "q4_1": LlamaFileType.MOSTLY_Q4_1,
    "q4_0": LlamaFileType.MOSTLY_Q4_0,
    "mxfp4": LlamaFileType.MOSTLY_MXFP4_MOE,
}
Model = tuple[str, int, int, int, int, int, bool] | tuple[str, int, int, int, int, int, bool, int]
# architecture, n_layer, n_embd, n_ff, n_head, n_head_kv, whether the embedding is the head
MODELS: tuple[Model, ...] = (
    ("llama", 11, 256, 256, 8, 2, False),
    ("llama", 32, 256, 256, 8, 8, True),
    ("llama", 80, 256, 256, 8, 2, False),
    ("llama", 80, 256, 256, 8, 8, False),
    ("falcon", 32, 256, 256, 4, 1, False),
    ("llama", 3, 288, 512, 9, 3, True),
    ("llama", 3, 128, 344, 4, 2, False),
)

# likewise, and how many experts
MIXTURES: tuple[Model, ...] = (
    ("llama", 11, 256, 256, 8, 2, False, 8),
    ("llama", 11, 256, 256, 8, 2, True, 4),
)


def shapes(
    architecture: str,
    n_layer: int,
    n_embd: int,
    n_ff: int,
    n_head: int,
    n_head_kv: int,
    tied: bool,
    n_expert: int = 0,
) -> dict[str, tuple[int, ...]]:
    """Every tensor of such a model, NumPy order."""
    n_kv = n_embd // n_head * n_head_kv
    layer: dict[str, tuple[int, ...]] = {
        "attn_norm.weight": (n_embd,),
        "attn_output.weight": (n_embd, n_embd),
        "ffn_up.weight": (n_ff, n_embd),
        "ffn_down.weight": (n_embd, n_ff),
    }
    whole: dict[str, tuple[int, ...]] = {"token_embd.weight": (64, n_embd), "output_norm.weight": (n_embd,)}
    if architecture == "falcon":
        layer |= {"attn_norm.bias": (n_embd,), "attn_qkv.weight": (n_embd + 2 * n_kv, n_embd)}
        whole |= {"output_norm.bias": (n_embd,)}
    else:
        layer |= {"attn_q.weight": (n_embd, n_embd), "attn_k.weight": (n_kv, n_embd)}
        layer |= {
            "attn_v.weight": (n_kv, n_embd),
            "ffn_norm.weight": (n_embd,),
            "ffn_gate.weight": (n_ff, n_embd),
        }
    if n_expert:
        for role, shape in (("up", (n_ff, n_embd)), ("gate", (n_ff, n_embd)), ("down", (n_embd, n_ff))):
            del layer[f"ffn_{role}.weight"]
            layer[f"ffn_{role}_exps.weight"] = (n_expert, *shape)
        layer["ffn_gate_inp.weight"] = (n_expert, n_embd)
    if not tied:
        whole["output.weight"] = (64, n_embd)
    return whole | {f"blk.{i}.{name}": shape for i in range(n_layer) for name, shape in layer.items()}


def write(path: Path, model: Model) -> None:
    """A model of zeros."""
    architecture, n_layer, n_embd, n_ff, n_head, n_head_kv, _, *experts = model
    writer = GGUFWriter(path, architecture)
    writer.add_block_count(n_layer)
    writer.add_context_length(64)
    writer.add_embedding_length(n_embd)
    writer.add_feed_forward_length(n_ff)
    writer.add_head_count(n_head)
    writer.add_head_count_kv(n_head_kv)
    for n_expert in experts:
        writer.add_expert_count(n_expert)
        writer.add_expert_used_count(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_layer_norm_eps(1e-5)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"t{i}" for i in range(64)])
    writer.add_token_scores([0.0] * 64)
    writer.add_token_types([1] * 64)
    for name, shape in shapes(*model).items():
        writer.add_tensor(name, np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def by_layer(types: dict[str, str]) -> dict[str, str]:
    """Of each matrix the types in all layers, equal neighbours counted: "4 Q6_K, 7 Q4_K"."""
    roles: dict[str, list[str]] = {}
    for name, kind in sorted(
        types.items(), key=lambda item: int((*item[0].split("."), "0")[1]) if "blk" in item[0] else 0
    ):
        roles.setdefault(name.split(".", 2)[-1] if "blk" in name else name, []).append(kind)
    return {
        role: ", ".join(f"{len(list(same))} {kind}" for kind, same in groupby(kinds))
        for role, kinds in roles.items()
    }


def main() -> None:
    """Write mixes.json."""
    recorded = []
    with tempfile.TemporaryDirectory() as folder:
        source, made = Path(folder, "in.gguf"), Path(folder, "out.gguf")
        wanted = [(model, FILE_TYPES) for model in MODELS] + [(model, OF_MIXTURES) for model in MIXTURES]
        for model, file_types in wanted:
            write(source, model)
            for outtype, file_type in file_types.items():
                params = llama_cpp.llama_model_quantize_default_params()
                params.ftype = int(file_type)
                assert not llama_cpp.llama_model_quantize(
                    str(source).encode(), str(made).encode(), ctypes.byref(params)
                )
                types = {t.name: t.tensor_type.name for t in GGUFReader(made).tensors if len(t.shape) > 1}
                recorded.append({"model": model, "outtype": outtype, "types": by_layer(types)})
    lines = ",\n".join(json.dumps(entry) for entry in recorded)
    (HERE / "mixes.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
