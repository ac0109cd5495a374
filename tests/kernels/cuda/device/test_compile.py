"""Every kernel compiled for six architectures, without a driver."""

import re
import runpy
from pathlib import Path

import pytest

from hotcold.errors import DeviceError
from hotcold.kernels.cuda.device import nvrtc as module
from hotcold.kernels.cuda.device.nvrtc import Nvrtc, Resources, Target, build_code, read_resources, target_for
from hotcold.kernels.cuda.device.occupancy import MULTIPROCESSORS, blocks_at_once, occupancy
from hotcold.kernels.cuda.device.signatures import MAX_STATIC_SHARED, read_signatures
from hotcold.kernels.cuda.device.sources import SOURCES, families, program, typed_families
from hotcold.kernels.cuda.device.units import ENDINGS, of_type, untyped
from hotcold.kernels.cuda.work import BLOCK
from hotcold.kernels.formats import KV_TYPES

MOST_REGISTERS = 80
LEAST_OCCUPANCY = 3 / 8
QUICK_ARCHITECTURE, QUICK = 80, ("q4_0",)  # a type takes some seconds to compile for one

TESTS = Path(__file__).parent.parent


def test_comments_are_as_narrow_as_those_of_python() -> None:
    """Which ruff's W505 looks at."""
    sources = [*families(), *sorted(SOURCES.glob("*.h"))]
    lines = [(path.name, line) for path in sources for line in path.read_text("utf-8").split("\n")]
    assert len(sources) > 20 and not [
        each for each in lines if each[1].lstrip().startswith("//") and len(each[1]) > 120
    ]


@pytest.mark.parametrize(
    ("architecture", "ending"),
    [
        pytest.param(
            a, ending, marks=[] if a == QUICK_ARCHITECTURE and ending in QUICK else [pytest.mark.slow]
        )
        for a in MULTIPROCESSORS
        for ending in ("no type", *ENDINGS)
    ],
)
def test_every_kernel_compiles_within_its_ceilings(nvrtc: Nvrtc, architecture: int, ending: str) -> None:
    unit = untyped() if ending == "no type" else of_type(ending)
    compiled = nvrtc.compile(unit.source, Target(architecture), ("--ptxas-options=-v",))
    needs = read_resources(compiled.log)
    assert compiled.code.startswith(b"\x7fELF") and "warning" not in compiled.log
    assert set(needs) == set(unit.signatures)
    for kernel, resources in needs.items():
        assert resources.spilled == resources.stack == 0, kernel
        assert 0 < resources.registers <= MOST_REGISTERS, kernel
        assert resources.shared <= MAX_STATIC_SHARED, kernel
        assert occupancy(architecture, resources, BLOCK) >= LEAST_OCCUPANCY, kernel


def test_the_tests_own_sources_are_cuda_too(nvrtc: Nvrtc) -> None:
    for name in ("emulator/intrinsics.cu", "seam.cu"):
        nvrtc.compile(program(TESTS / name), Target(80))


def test_a_spill_would_be_seen(nvrtc: Nvrtc) -> None:
    source = program(TESTS / "seam.cu").replace("__launch_bounds__(256)", "__launch_bounds__(1024)")
    many = ", ".join(f"v{i} = x[{i} * n]" for i in range(200))
    uses = " ".join(f"v{i} = fmaf(v{i}, v{(i + 7) % 200}, v{(i + 3) % 200});" for i in range(200))
    sums = " + ".join(f"v{i}" for i in range(200))
    source += (
        f"KERNEL hungry(const float* x, float* y, int n) {{ float {many};\n"
        f"for (int j = 0; j < n; j++) {{ {uses} }}\ny[threadIdx.x] = {sums}; }}\n"
    )
    needs = read_resources(nvrtc.compile(source, Target(80), ("--ptxas-options=-v",)).log)
    assert needs["hungry"].spilled > 0 and needs["scale"].spilled == 0


def test_an_error_names_its_line(nvrtc: Nvrtc) -> None:
    path, line = SOURCES / "rope.cu", "int first = interleaved ? 2 * pair"
    number = next(n for n, text in enumerate(path.read_text().splitlines(), 1) if line in text)
    with pytest.raises(DeviceError, match=rf"rope.cu\({number}\).*refuses them for sm_80") as caught:
        nvrtc.compile(program(path).replace(line, f"what + {line}"), Target(80))
    assert caught.value.exit_code == 5


def test_the_compiler_says_what_it_knows(nvrtc: Nvrtc) -> None:
    assert set(MULTIPROCESSORS) <= set(nvrtc.architectures)
    for unknown in (10, 999):
        with pytest.raises(DeviceError, match=f"sm_{unknown}.*install an NVRTC that knows this card"):
            nvrtc.compile(program(SOURCES / "add.cu"), Target(unknown))


@pytest.mark.parametrize(
    ("card", "known", "target"),
    [
        (61, (50, 61, 70), Target(61)),
        (90, (80, 86, 89, 90, 120), Target(90)),
        (88, (80, 86, 89, 90), Target(86, is_machine_code=False)),
        (130, (75, 80, 90, 120), Target(120, is_machine_code=False)),
    ],
)
def test_a_card_gets_its_own_code_or_ptx_of_the_newest_below(
    card: int, known: tuple[int, ...], target: Target
) -> None:
    assert target_for(card, known) == target


@pytest.mark.parametrize(("card", "problem"), [(52, "kernels need sm_61"), (70, "this NVRTC knows is sm_75")])
def test_a_card_that_is_too_old_is_named(card: int, problem: str) -> None:
    with pytest.raises(DeviceError, match=f"sm_{card} .*{problem}.*use --device cpu") as caught:
        target_for(card, (75, 80, 90))
    assert caught.value.exit_code == 5


def test_a_card_newer_than_the_compiler_gets_text(
    nvrtc: Nvrtc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = build_code(program(SOURCES / "add.cu"), 999)
    text = path.read_text()
    assert path.suffix == ".ptx" and f".target sm_{max(nvrtc.architectures)}" in text and ".entry add" in text


def test_machine_code_is_cached(nvrtc: Nvrtc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    source = program(SOURCES / "add.cu")
    path = build_code(source, 80)
    with monkeypatch.context() as patch:
        patch.setattr(Nvrtc, "compile", lambda *_: pytest.fail("compiled twice"))
        assert build_code(source, 80) == path
    assert build_code(source, 86) != path and build_code(source + "\n", 80) != path
    path.write_bytes(path.read_bytes()[:100])
    assert build_code(source, 80).read_bytes().startswith(b"\x7fELF") and path.stat().st_size > 100


def test_a_missing_nvrtc_is_said_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WHEELS", ())
    monkeypatch.setattr(module, "find_library", lambda name: None)
    with pytest.raises(DeviceError, match="NVRTC: not found.*pip install nvidia-cuda-nvrtc-cu12") as caught:
        Nvrtc()
    assert caught.value.exit_code == 5


def test_missing_headers_are_said_with_their_remedy(
    nvrtc: Nvrtc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WHEELS", ("nvidia-cuda-nvrtc-cu12", "nvidia-cuda-nvrtc"))
    monkeypatch.setenv("CUDA_PATH", str(tmp_path))
    with pytest.raises(DeviceError, match="cuda_fp16.h not found.*nvidia-cuda-runtime-cu12"):
        Nvrtc()


@pytest.mark.parametrize(
    ("architecture", "resources", "block", "blocks"),
    [
        (75, Resources(32, 0, 0, 0), 256, 4),  # threads
        (80, Resources(32, 0, 0, 0), 256, 8),
        (80, Resources(65, 0, 0, 0), 256, 3),  # registers: 72 of them a thread
        (86, Resources(16, 30 << 10, 0, 0), 256, 3),  # shared memory, with 1 KiB a block for the system
        (86, Resources(16, 0, 0, 0), 32, 16),  # blocks
    ],
)
def test_occupancy_by_hand(architecture: int, resources: Resources, block: int, blocks: int) -> None:
    assert blocks_at_once(architecture, resources, block) == blocks
    expected = blocks * block / MULTIPROCESSORS[architecture].threads
    assert occupancy(architecture, resources, block) == expected


def test_every_kernel_has_its_sizes_beside_it() -> None:
    for path in families():
        sizes = path.with_suffix(".py").read_text()
        for kernel in read_signatures(program(path, types=[("f32",)])):
            if path in typed_families():
                assert f'("{kernel.removesuffix("_f32")}", ' in sizes, kernel
            else:
                family = re.sub(rf"_({'|'.join(KV_TYPES)})$", "", kernel)
                assert re.search(rf'"({kernel}"|{family}_\{{)', sizes), kernel


@pytest.mark.slow
def test_the_table_in_the_docs_is_of_these_kernels(nvrtc: Nvrtc) -> None:
    root = Path(__file__).resolve().parents[4]
    script = runpy.run_path(str(root / "bench" / "compile_check.py"))
    page = (root / "docs" / "performance.md").read_text()
    table = script["table"](script["measure"]())
    version = table.split(",")[0]
    if version not in page:
        pytest.skip(f"the docs were made by another compiler than {version}")
    assert table in page
