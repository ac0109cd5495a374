"""Options have defaults, bounds that are named, and reasons."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hotcold.engine import settings
from hotcold.errors import DeviceError, SettingError


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


def cpus(*cores: tuple[int, int]) -> dict[str, str]:
    """/sys of CPUs by (package, core)."""
    files: dict[str, str] = {}
    for cpu, (package, core) in enumerate(cores):
        topology = f"sys/devices/system/cpu/cpu{cpu}/topology"
        files |= {f"{topology}/physical_package_id": str(package), f"{topology}/core_id": str(core)}
    return files


FOUR_CORES = cpus((0, 0), (0, 1), (0, 2), (0, 3), (0, 0), (0, 1), (0, 2), (0, 3))


def test_threads_are_physical_cores(tmp_path: Path) -> None:
    assert settings.default_threads(tree(tmp_path, FOUR_CORES), set(range(8))) == 4


def test_cores_of_two_packages_have_the_same_numbers(tmp_path: Path) -> None:
    root = tree(tmp_path, cpus((0, 0), (0, 1), (1, 0), (1, 1)))
    assert settings.default_threads(root, set(range(4))) == 4


@pytest.mark.parametrize(("affinity", "expected"), [({0, 4}, 1), ({0, 1, 5}, 2), ({6, 7}, 2), (set(), 1)])
def test_threads_stay_within_the_affinity(tmp_path: Path, affinity: set[int], expected: int) -> None:
    assert settings.default_threads(tree(tmp_path, FOUR_CORES), affinity) == expected


def test_without_topology_every_cpu_counts(tmp_path: Path) -> None:
    assert settings.default_threads(tmp_path, {0, 1, 2}) == 3


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"sys/fs/cgroup/cpu.max": "200000 100000"}, 2),
        ({"sys/fs/cgroup/cpu.max": "250000 100000"}, 2),
        ({"sys/fs/cgroup/cpu.max": "50000 100000"}, 1),
        ({"sys/fs/cgroup/cpu.max": "max 100000"}, 4),
        ({"sys/fs/cgroup/cpu.max": "nonsense"}, 4),
        ({"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/b/cpu.max": "300000 100000"}, 3),
        (
            {
                "proc/self/cgroup": "0::/a/b",
                "sys/fs/cgroup/a/cpu.max": "200000 100000",
                "sys/fs/cgroup/a/b/cpu.max": "300000 100000",
            },
            2,
        ),
        ({"proc/self/cgroup": "0::/a", "sys/fs/cgroup/other/cpu.max": "100000 100000"}, 4),
        (
            {
                "proc/self/cgroup": "5:cpu,cpuacct:/job\n4:memory:/other",
                "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us": "200000",
                "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us": "100000",
            },
            2,
        ),
        (
            {
                "proc/self/cgroup": "1:cpu:/not/mounted",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "100000",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            1,
        ),
        (
            {
                "proc/self/cgroup": "1:cpu:/",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            4,
        ),
    ],
)
def test_threads_stay_within_the_quota(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    assert settings.default_threads(tree(tmp_path, FOUR_CORES | files), set(range(8))) == expected


def test_threads_of_this_machine() -> None:
    assert 1 <= settings.default_threads() <= settings.MAX_THREADS
    assert settings.thread_count(None) == settings.default_threads()
    assert settings.thread_count(3) == 3


@pytest.mark.parametrize("value", [0, -1, 1025, 1.5, True, "2"])
def test_bad_thread_counts_are_named(value: Any) -> None:
    with pytest.raises(SettingError, match=rf"^threads: {value} \(a whole number from 1 to 1024\)"):
        settings.thread_count(value)


def test_context_is_the_models_up_to_4096() -> None:
    assert settings.context_length(None, 512) == settings.ContextLength(512)
    assert settings.context_length(None, 131072) == settings.ContextLength(4096)
    assert settings.context_length(8192, 131072) == settings.ContextLength(8192)


def test_a_longer_context_than_trained_warns() -> None:
    context = settings.context_length(513, 512)
    assert context.n_ctx == 513
    assert "513" in context.warning
    assert "512" in context.warning


def test_batch_is_clamped_to_the_context() -> None:
    assert settings.batch_length(512, 100) == 100
    assert settings.batch_length(7, 100) == 7
    with pytest.raises(SettingError, match="n_batch: 0"):
        settings.batch_length(0, 100)


def model(activation: str = "relu", transposed: bool = True, predictors: bool = False) -> Any:
    layer = SimpleNamespace(ffn_down_t="weight" if transposed else None)
    return SimpleNamespace(ffn_activation=activation, has_predictors=predictors, layers=(layer, layer))


@pytest.mark.parametrize(
    ("kind", "wanted", "mode"),
    [
        (model(predictors=True), "auto", "predictor"),
        (model(), "auto", "exact"),
        (model(transposed=False), "auto", "off"),
        (model("silu", transposed=False), "auto", "off"),
        (model(predictors=True), "exact", "exact"),
        (model(predictors=True), "off", "off"),
        (model(predictors=True), "predictor", "predictor"),
    ],
)
def test_sparsity_follows_the_file(kind: Any, wanted: str, mode: str) -> None:
    resolved, why = settings.resolve_sparsity(kind, wanted)
    assert resolved == mode
    assert why


@pytest.mark.parametrize(
    ("kind", "wanted", "message"),
    [
        (model(), "predictor", "sparsity: predictor .*no predictors"),
        (model("silu", transposed=False), "exact", "sparsity: exact .*SILU"),
        (model(transposed=False), "exact", "sparsity: exact .*no ffn_down_t"),
        (model(), "some", "sparsity: some .*auto, exact, off, predictor"),
    ],
)
def test_sparsity_that_the_file_cannot_run_in_is_refused(kind: Any, wanted: str, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        settings.resolve_sparsity(kind, wanted)


def test_threshold_is_the_flag_then_the_environment_then_the_file() -> None:
    environment = {"LLAMA_SPARSE_PRED_THRESHOLD": "-0.25"}
    assert settings.resolve_threshold(0.0, 0.5, environment) == 0.0
    assert settings.resolve_threshold(None, 0.5, environment) == -0.25
    assert settings.resolve_threshold(None, 0.5, {}) == 0.5


@pytest.mark.parametrize("text", ["junk", "", "1_0", "nan", "inf", "-inf", "0,5", "1e999"])
def test_a_bad_threshold_in_the_environment_is_named(text: str) -> None:
    with pytest.raises(SettingError, match=f"^LLAMA_SPARSE_PRED_THRESHOLD: .*{text}.*finite"):
        settings.resolve_threshold(None, 0.5, {"LLAMA_SPARSE_PRED_THRESHOLD": text})


@pytest.mark.parametrize("value", [math.nan, math.inf, "much", True])
def test_a_bad_threshold_is_named(value: Any) -> None:
    with pytest.raises(SettingError, match=f"^sparse_pred_threshold: {value}"):
        settings.resolve_threshold(value, 0.5, {})


@pytest.mark.parametrize(
    ("device", "budget"),
    [("auto", "auto"), ("cpu", 0), ("cpu", "auto"), ("auto", "0G"), ("cuda:1", "6G"), ("emulated", "80%")],
)
def test_what_names_a_device_is_accepted(device: str, budget: Any) -> None:
    settings.check_device(device, budget)


@pytest.mark.parametrize(
    ("device", "budget", "kind", "message"),
    [
        ("gpu", 0, SettingError, r"^device: gpu \(auto, cpu, cuda, cuda:N or emulated\)"),
        ("tpu", "auto", SettingError, "^device: tpu"),
        ("cuda:", "auto", SettingError, "^device: cuda:"),
        ("cuda:x", "auto", SettingError, "^device: cuda:x"),
        ("cpu", 800_000_000, DeviceError, "^vram_budget: 800000000"),
        ("cpu", "6G", DeviceError, "^vram_budget: 6G .device cpu has no VRAM"),
        ("cpu", "much", SettingError, "^vram_budget: much"),
    ],
)
def test_what_names_none_is_refused(device: str, budget: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        settings.check_device(device, budget)


@pytest.mark.parametrize(
    ("budget", "is_none"), [("0", True), (0, True), ("0%", True), ("auto", False), ("1KiB", False)]
)
def test_no_budget(budget: Any, is_none: bool) -> None:
    assert settings.is_no_budget(budget) is is_none


@pytest.mark.parametrize("budget", ["much", -1, "nan", True])
def test_a_budget_that_means_nothing(budget: Any) -> None:
    with pytest.raises(SettingError, match=f"^vram_budget: {budget}"):
        settings.is_no_budget(budget)
