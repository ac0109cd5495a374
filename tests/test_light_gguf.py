"""A start with gguf's constants alone, which is the whole package for whoever asks for more."""

import subprocess
import sys

LIGHT = """
import sys
from hotcold.light_gguf import lighten
lighten()
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
print("yaml" in sys.modules, "gguf.gguf_writer" in sys.modules)
from gguf import {name}
import gguf
print("gguf.gguf_writer" in sys.modules, gguf.GGMLQuantizationType is GGMLQuantizationType, {name}.__name__)
print(hasattr(gguf, "no such name"), gguf.GGUFReader.__module__)
"""
BEFORE = "import gguf, hotcold.light_gguf as l; l.lighten(); print(gguf.GGUFWriter.__name__)"


def printed(code: str) -> list[str]:
    """What a fresh process prints."""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return done.stdout.split()


def test_constants_come_alone_and_the_rest_when_it_is_asked_for() -> None:
    for name, own in (("GGUFWriter", "GGUFWriter"), ("quants", "gguf.quants")):
        wanted = ["False", "False", "True", "True", own, "False", "gguf.gguf_reader"]
        assert printed(LIGHT.format(name=name)) == wanted


def test_a_package_that_is_there_stays() -> None:
    assert printed(BEFORE) == ["GGUFWriter"]


def test_a_start_of_the_command_needs_no_more() -> None:
    code = "import sys; sys.argv[1:] = ['generate', '-p', 'a', '-n', '1', '-q']\n"
    code += "from hotcold.__main__ import main\ntry: main()\nexcept SystemExit: pass\nprint()\n"
    code += "print('gguf.gguf_writer' in sys.modules, 'numba' in sys.modules)"
    assert printed(code)[-2:] == ["False", "False"]
