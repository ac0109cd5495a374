"""Outputs that cannot be written, and conversions that end half-way: the old file stays."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conversion_refusals import MakeLlama, refusal

from hotcold.errors import DoesNotFitError, SettingError
from hotcold.gguf_io.convert.conversion import convert


@pytest.mark.parametrize("outtype", ["q9_0", "F16", ""])
def test_unknown_types(llama: MakeLlama, out: Path, outtype: str) -> None:
    error = refusal(llama().folder, out, outtype=outtype)
    assert isinstance(error, SettingError)
    assert "one of f32, f16, bf16, q8_0, q6_k, " in str(error)


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "tokenizer.model", "activation/activation_1.npy"]
)
def test_the_output_is_an_input(llama: MakeLlama, name: str) -> None:
    model = llama()
    (model.folder / "activation").mkdir()
    for i in range(2):
        np.save(model.folder / "activation" / f"activation_{i}.npy", np.zeros(96))
    error = refusal(model.folder, model.folder / name, force=True)
    assert "is the input" in str(error)
    assert error.exit_code == 2


def test_an_existing_output(llama: MakeLlama, out: Path) -> None:
    model = llama()
    out.parent.mkdir()
    out.write_bytes(b"old")
    assert "use --force to overwrite it" in str(refusal(model.folder, out))
    convert(model.folder, None, out, "f16", force=True)
    assert out.read_bytes()[:4] == b"GGUF"


def test_a_disk_that_fills_up(llama: MakeLlama, out: Path) -> None:
    out.parent.mkdir()
    out.write_bytes(b"old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    error = refusal(llama().folder, out, progress=full, force=True)
    assert isinstance(error, DoesNotFitError)
    assert "No space left on device (nothing was kept); free some disk" in str(error)


INTERRUPTED = """
import sys, time
from pathlib import Path
from hotcold.gguf_io.convert.conversion import convert

def wait(*_):
    print("half-way", flush=True)
    time.sleep(60)

convert(Path(sys.argv[1]), None, Path(sys.argv[2]), "f16", force=True, progress=wait)
"""


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_ctrl_c_half_way(llama: MakeLlama, out: Path) -> None:
    out.parent.mkdir()
    out.write_bytes(b"old")
    command = [sys.executable, "-c", INTERRUPTED, str(llama().folder), str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"half-way\n"
    assert len(list(out.parent.iterdir())) == 2
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert b"KeyboardInterrupt" in errors
    assert [(path.name, path.read_bytes()) for path in out.parent.iterdir()] == [("out.gguf", b"old")]
