"""Which files a conversion needs, and which of them are missing."""

from collections.abc import Iterator
from pathlib import Path

from hotcold.errors import FileError
from hotcold.gguf_io.convert.predictors import predictor_files
from hotcold.gguf_io.huggingface.config import read_config
from hotcold.gguf_io.huggingface.model import HFModel
from hotcold.gguf_io.huggingface.other_kinds import refuse_other_kinds, refuse_stand_ins
from hotcold.gguf_io.huggingface.tokenizer import FILES as tokenizer_files
from hotcold.gguf_io.huggingface.tokenizer import missing_files
from hotcold.gguf_io.huggingface.weights import index_file, weight_files

MAX_LISTED = 20


def check_inputs(model_dir: Path, predictors: Path | None) -> HFModel:
    """The configuration, once every input is known to be there.

    Raises:
        FileError: inputs are missing (all of them in one message, each with its remedy), or as `read_config`.
    """
    if not model_dir.exists():
        raise FileError(
            "model to convert", model_dir, "is not there", "give a Hugging Face folder or a GGUF file"
        )
    if model_dir.is_dir():
        refuse_other_kinds(model_dir, weight_files(model_dir))
        refuse_stand_ins(sources_of(model_dir))
    missing = list(_missing_in_model(model_dir))
    path = model_dir / "config.json"
    config = read_config(path, predictors is not None) if path.is_file() else None
    if predictors is not None and not predictors.exists():
        missing.append(f"{predictors} (the predictors: check the path, or leave them out)")
    elif predictors is not None and config is not None:
        missing += [
            f"{file} (a layer's predictor: fetch it, or leave the predictors out)"
            for file in predictor_files(predictors, config.n_layer)
            if not file.is_file()
        ]
    if missing or config is None:
        raise FileError(f"cannot convert {model_dir}", f"{len(missing)} missing", "", _listed(missing))
    return config


def snapshot(model_dir: Path) -> Path:
    """The model's own folder where `model_dir` is one of a hub's cache: that of `refs/main`, or the only one."""
    snapshots = model_dir / "snapshots"
    if (model_dir / "config.json").exists() or not snapshots.is_dir():
        return model_dir
    ref = model_dir / "refs" / "main"
    named = snapshots / ref.read_text(errors="replace").strip() if ref.is_file() else None
    if named is not None and named.is_dir() and named != snapshots:
        return named
    found = sorted(path for path in snapshots.iterdir() if path.is_dir())
    return found[0] if len(found) == 1 else model_dir


def _listed(missing: list[str]) -> str:
    more = [f"and {len(missing) - MAX_LISTED} more"] if len(missing) > MAX_LISTED else []
    return "; ".join(missing[:MAX_LISTED] + more)


def _missing_in_model(model_dir: Path) -> Iterator[str]:
    if not model_dir.is_dir():
        yield f"{model_dir} (give the folder of a Hugging Face model)"
        return
    if not (model_dir / "config.json").is_file():
        yield "config.json (give the folder of a Hugging Face model, or fetch the file from there)"
    for file in weight_files(model_dir):
        if not file.is_file():
            yield f"{file.name} (fetch it from the model's page)"
    for name in missing_files(model_dir):
        yield f"{name} (fetch it from the model's page)"


def sources_of(model_dir: Path) -> list[Path]:
    """The files of the directory itself that may be read; optional ones need not exist."""
    files = [model_dir / name for name in ("config.json", *tokenizer_files)]
    return files + [*filter(None, [index_file(model_dir)]), *weight_files(model_dir)]


def source_files(model_dir: Path, predictors: Path | None, config: HFModel) -> list[Path]:
    """Every file that the conversion may read; optional ones need not exist."""
    files = sources_of(model_dir)
    files += [
        model_dir / "activation" / f"activation_{i}{end}"
        for i in range(config.n_layer)
        for end in (".npy", ".pt")
    ]
    if predictors is not None:
        files += [*predictor_files(predictors, config.n_layer), predictors / "config.json"]
    return files
