"""The options that a user can set: defaults, bounds, and what is said when one is out of them."""

import math
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hotcold.engine.plan.budget import SHARE, parse_size
from hotcold.errors import DeviceError, FileError, SettingError

if TYPE_CHECKING:
    from hotcold.engine.model.model import Model

DEFAULT_N_CTX = 4096  # unless the model's own length is shorter
DEFAULT_N_BATCH = 512
DEFAULT_MAX_TOKENS = 128
REPEAT_LAST_N = 64  # tokens that the repeat penalty looks back on
MAX_SEED = (1 << 64) - 1
MAX_TOP_K = 1 << 30
MAX_TOKENS = 1 << 30
MAX_N_CTX = 1 << 24
MAX_N_BATCH = 1 << 16
MAX_THREADS = 1024
SPARSITIES = ("auto", "exact", "off", "predictor")
DEVICES = ("auto", "cpu", "cuda", "emulated")
DEBUG_VARIABLE = "HOTCOLD_DEBUG"
OFFLOAD_VARIABLE = "LLAMA_OFFLOAD_DEBUG"  # a macro in PowerInfer
TRACE_NODES, PRINT_GRAPHS = 2, 3  # levels of HOTCOLD_DEBUG
THRESHOLD_VARIABLE = "LLAMA_SPARSE_PRED_THRESHOLD"
BUNDLED_MODEL = "tiny-relu-llama"
EXAMPLES = {  # a good value of each number, as the command line takes it
    "temp": "--temp 0.8",
    "top_k": "--top-k 40",
    "top_p": "--top-p 0.95",
    "min_p": "--min-p 0.05",
    "repeat_penalty": "--repeat-penalty 1.1",
    "seed": "--seed 1",
    "max_tokens": "-n 128",
    "n_ctx": "-c 512",
    "n_batch": "-b 512",
    "threads": "-t 2",
    "--host-gbps": "--host-gbps 40",
    "--device-gbps": "--device-gbps 900",
    "--bus-gbps": "--bus-gbps 25",
}


@dataclass(frozen=True)
class SamplingSettings:
    """How the next token is chosen. The order is: penalty, top_k, temperature, top_p, min_p.

    Attributes:
        temp: logits are divided by it; 0 takes the most likely token.
        top_k: keep that many most likely tokens; 0 keeps all.
        top_p: keep the most likely tokens until their probabilities add up to it; 1 keeps all.
        min_p: keep tokens at least min_p times as likely as the most likely one; 0 keeps all.
        repeat_penalty: positive logits of the last 64 tokens are divided by it, negative ones
            multiplied (Keskar et al., 2019); 1 changes nothing.
        seed: of the random numbers; None draws one.
    """

    temp: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.1
    seed: int | None = None

    def checked(self) -> "SamplingSettings":
        """The same settings, with a seed.

        Raises:
            SettingError: a value out of its bounds, named.
        """
        number_within("temp", self.temp, 0, math.inf, "a finite number of at least 0")
        whole_number("top_k", self.top_k, 0, MAX_TOP_K)
        number_within("top_p", self.top_p, 0, 1, "above 0, up to 1", above=True)
        number_within("min_p", self.min_p, 0, 1, "from 0 to 1")
        number_within(
            "repeat_penalty", self.repeat_penalty, 0, math.inf, "a finite number above 0", above=True
        )
        if self.seed is None:
            return replace(self, seed=secrets.randbits(32))
        whole_number("seed", self.seed, 0, MAX_SEED)
        return self


@dataclass(frozen=True)
class ContextLength:
    """A context's length, and what a user should know about it (or "")."""

    n_ctx: int
    warning: str = ""


def whole_number(name: str, value: object, smallest: int, largest: int) -> int:
    """`value`, if it is an int within the bounds.

    Raises:
        SettingError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not smallest <= value <= largest:
        raise _bad_number(name, value, f"a whole number from {smallest} to {largest}")
    return value


def number_within(
    name: str, value: object, low: float, high: float, bound: str, *, above: bool = False
) -> None:
    """Accept a finite number from `low` (or above it) to `high`.

    Raises:
        SettingError: anything else; `bound` says what was wanted.
    """
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not good or not low <= value <= high or (above and value == low):  # type: ignore[operator]
        raise _bad_number(name, value, bound)


def _bad_number(name: str, value: object, bound: str) -> SettingError:
    return SettingError(name, str(value), bound, f"such as {EXAMPLES[name]}")


def one_of(name: str, value: object, known: tuple[str, ...]) -> str:
    """`value`, if it is one of the known words.

    Raises:
        SettingError: it is not.
    """
    if not isinstance(value, str) or value not in known:
        raise SettingError(name, str(value), f"known: {', '.join(known)}", "choose one of them")
    return value


def context_length(wanted: int | None, n_ctx_train: int) -> ContextLength:
    """Positions of the KV cache: the wanted number, else what the model was trained for, up to 4096."""
    if wanted is None:
        return ContextLength(min(n_ctx_train, DEFAULT_N_CTX))
    n_ctx = whole_number("n_ctx", wanted, 1, MAX_N_CTX)
    if n_ctx <= n_ctx_train:
        return ContextLength(n_ctx)
    return ContextLength(
        n_ctx, f"n_ctx is {n_ctx}, the model was trained for {n_ctx_train}: text beyond that gets worse"
    )


def batch_length(wanted: int, n_ctx: int) -> int:
    """Most tokens of one run: the wanted number, clamped to n_ctx."""
    return min(whole_number("n_batch", wanted, 1, MAX_N_BATCH), n_ctx)


def thread_count(wanted: int | None) -> int:
    """The wanted number of threads, else `default_threads()`."""
    return default_threads() if wanted is None else whole_number("threads", wanted, 1, MAX_THREADS)


def check_device(device: str, vram_budget: float | str) -> None:
    """Refuse a device or a budget that means nothing, and VRAM for the CPU alone.

    Raises:
        SettingError: a value that means nothing.
        DeviceError: a budget for the CPU.
    """
    kind, _, number = str(device).partition(":")
    if str(device) not in DEVICES and not (kind == "cuda" and number.isascii() and number.isdigit()):
        raise SettingError("device", device, "auto, cpu, cuda, cuda:N or emulated", "see `hotcold devices`")
    if str(device) == "cpu" and not is_no_budget(vram_budget) and str(vram_budget).strip() != "auto":
        raise DeviceError("vram_budget", vram_budget, "device cpu has no VRAM", "leave one of them out")


def is_no_budget(vram_budget: float | str) -> bool:
    """Whether a budget is 0; SettingError if it means nothing."""
    text = str(vram_budget).strip()
    if text == "auto":
        return False
    share = SHARE.fullmatch(text)
    return float(share[1]) == 0 if share else parse_size(vram_budget) == 0


def resolve_sparsity(model: "Model", wanted: str) -> tuple[str, str]:
    """How the FFN runs, and why.

    Args:
        wanted: "auto", "exact", "off" or "predictor". Auto takes the predictor where the file has one,
            exact for a ReLU model that keeps a row a neuron of its down projection, else off.

    Returns:
        ("off" | "exact" | "predictor", reason in words).

    Raises:
        SettingError: an unknown word, or a mode that this file cannot run in.
    """
    one_of("sparsity", wanted, SPARSITIES)
    transposed = all(layer.ffn_down_t is not None for layer in model.layers)
    relu = model.ffn_activation == "relu"
    if wanted == "off":
        return "off", "asked for"
    if wanted == "auto":
        if model.has_predictors:
            return "predictor", "the file has predictors"
        if relu and transposed:
            return "exact", "a ReLU model without predictors"
        return "off", f"{model.ffn_activation.upper()} without predictors" if not relu else "no ffn_down_t"
    if wanted == "predictor" and not model.has_predictors:
        raise SettingError(
            "sparsity", wanted, "this file has no predictors", "use auto, or convert with them"
        )
    if wanted == "exact" and not relu:
        bound = f"the FFN is {model.ffn_activation.upper()}: only ReLU has exact zeros"
        raise SettingError("sparsity", wanted, bound, "use off")
    if not transposed:
        bound = "the file has no ffn_down_t tensors"
        raise SettingError("sparsity", wanted, bound, "use off, or convert the model with hotcold convert")
    return wanted, "asked for"


def resolve_threshold(
    wanted: float | None, in_file: float, environment: Mapping[str, str] = os.environ
) -> float:
    """Predictor outputs at or above this count as active: as set, else by the environment, else the file.

    Raises:
        SettingError: not a finite number.
    """
    if wanted is not None:
        return _finite("sparse_pred_threshold", wanted)
    if (text := environment.get(THRESHOLD_VARIABLE)) is not None:
        return _finite(THRESHOLD_VARIABLE, text)
    return in_file


def debug_level(environment: Mapping[str, str] = os.environ) -> int:
    """HOTCOLD_DEBUG: 1 tracebacks, 2 each node as it runs, 3 the graphs; any other word counts as 1."""
    text = environment.get(DEBUG_VARIABLE, "0")
    if text in ("", "0"):
        return 0
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 4 else 1


def offload_debug(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether LLAMA_OFFLOAD_DEBUG asks for the short form of the offload dump."""
    return environment.get(OFFLOAD_VARIABLE, "0") not in ("", "0")


def _finite(name: str, value: float | str) -> float:
    try:
        number = math.nan if isinstance(value, bool) or "_" in str(value) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise SettingError(name, repr(value) if value == "" else value, "a finite number", "such as 0.5")
    return number


def model_path(path: str | os.PathLike[str] | None) -> Path:
    """The model's file: `path`, the one .gguf in the directory `path`, or the bundled model for None.

    Raises:
        FileError: nothing there, or a directory with no .gguf or several.
    """
    if path is None:
        return _bundled_model()
    given = Path(path).expanduser()
    if not given.is_dir():
        return given
    try:
        found = sorted(entry for entry in given.iterdir() if entry.suffix == ".gguf" and entry.is_file())
    except OSError as error:
        raise FileError("model directory", given, error.strerror or "cannot be read") from error
    if len(found) != 1:
        names = f": {', '.join(entry.name for entry in found[:5])}" if found else ""
        more = ", …" if len(found) > 5 else ""
        bound = f"a directory needs exactly one .gguf file, this has {len(found)}{names}{more}"
        raise FileError("model directory", given, bound, "name the file itself")
    return found[0]


def _bundled_model() -> Path:
    from importlib import resources

    folder = Path(str(resources.files("hotcold"))) / "models" / BUNDLED_MODEL
    found = sorted(folder.glob("*.gguf"))
    if not found:
        raise FileError("bundled model", folder, "no .gguf file there", "name a model with -m")
    return found[0]


def default_threads(root: Path = Path("/"), affinity: set[int] | None = None) -> int:
    """Physical cores that this process may use, and no more than its cgroup's CPU quota, at least 1.

    A second hardware thread of a core adds no memory bandwidth, and a quota below the number of threads
    stops all of them while they wait for each other.

    Args:
        root: where /sys and /proc are. affinity: the CPUs of this process; None asks the system.
    """
    cpus = _affinity() if affinity is None else affinity
    quota = cpu_quota(root)
    cores = physical_cores(root, cpus)
    return max(1, cores if quota is None else min(cores, math.floor(quota)))


def _affinity() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def physical_cores(root: Path, cpus: set[int]) -> int:
    """Distinct cores among `cpus`; a CPU whose core is not known counts as one."""
    cores = set()
    for cpu in cpus:
        topology = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
        package, core = _read(topology / "physical_package_id"), _read(topology / "core_id")
        die = _read(topology / "die_id") or "0"
        cores.add((package, die, core) if package is not None and core is not None else ("cpu", "", str(cpu)))
    return len(cores)


def cpu_quota(root: Path) -> float | None:
    """CPUs of the tightest quota among this process's cgroup (version 1 or 2) and those above it."""
    quotas = [q for folder in _cgroup_folders(root) if (q := _folder_quota(folder)) is not None]
    return min(quotas, default=None)


def _cgroup_folders(root: Path) -> list[Path]:
    """The process's CPU cgroup and its parents, where each is mounted by custom."""
    folders = []
    for line in (_read(root / "proc/self/cgroup") or "0::/").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / controllers
        parts = [part for part in group.split("/") if part and part != ".."]
        folders += [mount.joinpath(*parts[:depth]) for depth in range(len(parts) + 1)]
        if controllers:
            folders += [root / "sys/fs/cgroup/cpu"]
    return folders


def _folder_quota(folder: Path) -> float | None:
    """Quota / period of one cgroup; cpu.max is version 2 ("max" is no limit), the others version 1."""
    words = (_read(folder / "cpu.max") or "").split()
    if not words:
        words = [_read(folder / f"cpu.cfs_{name}_us") or "" for name in ("quota", "period")]
    try:
        quota, period = float(words[0]), float(words[1])
    except (IndexError, ValueError):
        return None
    return quota / period if quota > 0 and period > 0 else None


def physical_memory(root: Path = Path("/")) -> int:
    """Bytes of memory that this machine has, or its cgroup may use."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _read(root / "sys/fs/cgroup/memory.max") or "max"
    return min(total, int(limit)) if limit.isdecimal() else total


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None
