"""Tensors stream through: memory does not grow with the model."""

import json
import math
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

MEASURE = """
import sys
from pathlib import Path
from hotcold.gguf_io.convert.conversion import convert

convert(Path(sys.argv[1]), None, Path(sys.argv[2]), sys.argv[3])
status = Path("/proc/self/status").read_text()
print(1024 * int(status.split("VmHWM:")[1].split()[0]))
"""
N_EMBD, N_FF, N_VOCAB, N_LAYER = 2048, 8192, 32768, 10


def zeros_as_safetensors(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """A BF16 file of zeros that takes no room on the disk where the system knows holes."""
    header: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


def peak_of_conversion(model: Path, outfile: Path, outtype: str) -> int:
    """Bytes of resident memory at their highest; getrusage would count what this process held before."""
    command = [sys.executable, "-c", MEASURE, str(model), str(outfile), outtype]
    return int(subprocess.run(command, capture_output=True, check=True).stdout)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of resident memory from /proc")
@pytest.mark.parametrize("outtype", ["q8_0", "f32"])
def test_memory_stays_below_the_largest_tensor_and_300_mb(tmp_path: Path, llama: Any, outtype: str) -> None:
    """Source 1.3 GB, largest tensor 134 MB."""
    sizes = {
        "hidden_size": N_EMBD,
        "intermediate_size": N_FF,
        "vocab_size": N_VOCAB,
        "num_hidden_layers": N_LAYER,
    }
    model = llama(hidden_act="relu")
    model.rewrite(**sizes)
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (N_VOCAB, N_EMBD),
        "lm_head.weight": (N_VOCAB, N_EMBD),
        "model.norm.weight": (N_EMBD,),
    }
    matrices = {"q": N_EMBD, "k": N_EMBD // 2, "v": N_EMBD // 2, "o": N_EMBD}
    for i in range(N_LAYER):
        layer = f"model.layers.{i}."
        shapes |= {f"{layer}self_attn.{name}_proj.weight": (rows, N_EMBD) for name, rows in matrices.items()}
        shapes |= {f"{layer}mlp.{name}_proj.weight": (N_FF, N_EMBD) for name in ("gate", "up")}
        shapes[f"{layer}mlp.down_proj.weight"] = (N_EMBD, N_FF)
        shapes |= {f"{layer}{name}_layernorm.weight": (N_EMBD,) for name in ("input", "post_attention")}
    zeros_as_safetensors(model.folder / "model.safetensors", shapes)
    largest = 2 * N_VOCAB * N_EMBD
    assert peak_of_conversion(model.folder, tmp_path / "out.gguf", outtype) < largest + 300_000_000
    if outtype == "f32":
        peak = peak_of_conversion(tmp_path / "out.gguf", tmp_path / "again.gguf", "q4_0")
        assert peak < 300_000_000  # of the file's 2.6 GB, which are read in slabs
        (tmp_path / "again.gguf").unlink()
    (tmp_path / "out.gguf").unlink()
