"""The tensors of the file out of those of a Hugging Face directory: all of them, each of its shape."""

from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotcold.errors import FileError
from hotcold.gguf_io.architectures.table import (
    OF_EACH,
    PREDICTOR,
    ROPE_FACTORS,
    Layout,
    TensorRule,
    by_neuron,
    of_layer,
)
from hotcold.gguf_io.convert.importance import read_importance
from hotcold.gguf_io.convert.options import ConvertOptions
from hotcold.gguf_io.convert.predictors import Predictors
from hotcold.gguf_io.convert.tensor_plan import (
    check_biases,
    no_down,
    output_shape,
    output_tensor,
    stacked_tensor,
)
from hotcold.gguf_io.huggingface.model import HFModel
from hotcold.gguf_io.huggingface.stacked import GPT_OSS, name_in_directory, taken_apart
from hotcold.gguf_io.huggingface.weights import open_weights, own_weights
from hotcold.gguf_io.outtypes import Recipe, check_rows, output_type, recipe_of
from hotcold.gguf_io.source_tensor import SourceTensor
from hotcold.gguf_io.writer import OutputTensor


def plan_tensors(
    model_dir: Path,
    model: HFModel,
    predictors: Predictors | None,
    options: ConvertOptions,
    warn: Callable[[str], None],
) -> tuple[list[OutputTensor], Recipe]:
    """Every tensor of the file in its order, and how it is written; numbers are read when it is.

    Raises:
        FileError: a tensor that is missing, left over, or of another shape than config.json says.
        SettingError: a sparse layout of a model that has no FFN to lay out, or experts with biases.
    """
    files = open_weights(model_dir, model.architecture.prefix, mxfp4=model.stacks == GPT_OSS)
    own = own_weights(files, model.renamed, model.beside)
    weights = taken_apart(own, model.stacks, model.sizes.get("n_expert", 0))
    tied = model.architecture.rule("output").source not in weights if model.tied is None else model.tied
    rules = list(_rules(model, tied, options.sparse_layout))
    if options.sparse_layout and not any(rule.role in ("ffn_down_t", "ffn_down_exps_t") for rule in rules):
        raise no_down(model_dir)
    if options.sparse_layout:
        check_biases(model_dir, (rule.name for rule in rules))
    _check_weights(model_dir, model, rules, weights, tied)
    if predictors and tied and not model.architecture.powerinfer_ties:
        warn("PowerInfer itself looks for output.weight, which a tied model lacks; hotcold does not")
    sources: list[tuple[str, list[SourceTensor], Layout]] = [
        (rule.name, [weights[source] for source in _sources(rule, model)], rule.layout) for rule in rules
    ]
    sources += [(name, [source], "same") for name, source in _extras(model, predictors)]
    shapes = {name: _stacked_shape(some, layout) for name, some, layout in sources}
    recipe = recipe_of(
        options.outtype, model.architecture.name, shapes, tied=tied and predictors is None, requantised=False
    )
    importance, heads = read_importance(options.imatrix, shapes), (model.n_head, model.n_head_kv)
    tensors = []
    for name, some, layout in sources:
        kind = output_type(name, shapes[name], recipe)
        of_each, weighs = OF_EACH.get(layout, layout), importance.get(name, [None] * len(some))
        parts = [
            output_tensor(name, source, of_each, heads, kind, warn, own)
            for source, own in zip(some, weighs, strict=True)
        ]
        tensors.append(stacked_tensor(name, parts) if layout in OF_EACH else parts[0])
    check_rows(tensors, recipe)
    return tensors, recipe


def _sources(rule: TensorRule, model: HFModel) -> list[str]:
    """The names of what becomes one tensor: one, or one an expert."""
    if rule.layout not in OF_EACH:
        return [rule.source]
    return [rule.source.format(e=e) for e in range(model.sizes["n_expert"])]


def _stacked_shape(sources: list[SourceTensor], layout: Layout) -> tuple[int, ...]:
    shape = output_shape(sources[0], OF_EACH.get(layout, layout))
    return (len(sources), *shape) if layout in OF_EACH else shape


def _rules(model: HFModel, tied: bool, sparse_layout: bool) -> Iterator[TensorRule]:
    """Every tensor of the directory, in the order of the file; a ReLU model's down projection by neuron.

    That of experts only where it is asked for: llama.cpp reads no other.
    """
    has = model.optional | (frozenset() if tied else {"output"})
    turned = sparse_layout or model.ffn_activation == "relu"
    layer = by_neuron(model.layer_rules, experts=sparse_layout) if turned else model.layer_rules
    layers = (of_layer(layer, i) for i in range(model.n_layer))
    for rule in chain(model.architecture.whole, *layers):
        if rule.role in has or not rule.optional:
            yield rule


def _extras(model: HFModel, predictors: Predictors | None) -> Iterator[tuple[str, SourceTensor]]:
    """Tensors that the directory does not have, or not among its weights."""
    for rule in ROPE_FACTORS:
        if model.rope is not None and rule.role in model.rope.factors:
            yield rule.name, _vector(rule.role, model.rope.factors[rule.role])
    for i, layer in enumerate(predictors.layers if predictors else ()):
        for rule, source in zip(of_layer(PREDICTOR, i), layer or (), strict=layer is not None):
            yield rule.name, source


def _vector(name: str, values: tuple[float, ...]) -> SourceTensor:
    def read() -> NDArray[Any]:
        return np.array(values, np.float32)

    return SourceTensor(name, (len(values),), "F32", read)


def _check_weights(
    model_dir: Path, model: HFModel, rules: list[TensorRule], weights: dict[str, SourceTensor], tied: bool
) -> None:
    """Every tensor is there, none is left over, and each has the shape that config.json says."""
    shapes = {source: rule.source_shape for rule in rules for source in _sources(rule, model)}
    needed = set(shapes)
    absent = (name_in_directory(source, model.stacks) for source in shapes if source not in weights)
    if missing := list(dict.fromkeys(absent)):
        raise FileError(
            f"weights of {model_dir}", _listed("no", missing), "config.json needs them", "fetch them again"
        )
    unused = {model.architecture.rule("output").source} if tied else set()
    left = sorted(n for n in set(weights) - needed - unused if not n.endswith(model.architecture.ignored))
    if left:
        bound = f"no part of a {model.architecture.name} model as config.json describes it"
        raise FileError(
            f"weights of {model_dir}", _listed("also", left), bound, "use a plain model of that kind"
        )
    sizes = model.sizes
    for source, symbols in shapes.items():
        shape = tuple(sizes[symbol] for symbol in symbols)
        if weights[source].shape != shape:
            found = f"shape {list(weights[source].shape)}"
            what = f"{model_dir}: {name_in_directory(source, model.stacks)}"
            raise FileError(what, found, f"config.json says {list(shape)}", "fetch both again")


def _listed(word: str, names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{word} {', '.join(names[:5])}{more}"
