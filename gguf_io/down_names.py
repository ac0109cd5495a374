"""What down projections are called: with a row an output, as llama.cpp has them, and with a row a neuron.

The endings of the names tell them apart. PowerInfer's files have experts' with a row a neuron by the name of the
others, and their shape alone tells.
"""

_BY_NEURON = {"ffn_down": "ffn_down_t", "ffn_down_exps": "ffn_down_exps_t"}
_BY_OUTPUT = {by_neuron: by_output for by_output, by_neuron in _BY_NEURON.items()}


def by_neuron(name: str) -> str:
    """The name of a down projection, or of its bias, with a row a neuron; any other name stays."""
    return _renamed(name, _BY_NEURON)


def by_output(name: str) -> str:
    """The name with a row an output; any other name stays."""
    return _renamed(name, _BY_OUTPUT)


def is_by_neuron(name: str) -> bool:
    """Whether it is the name of a down projection with a row a neuron, or of its bias."""
    return by_output(name) != name


def _renamed(name: str, names: dict[str, str]) -> str:
    before, dot, ending = name.rpartition(".")
    layer, inner, role = before.rpartition(".")
    return f"{layer}{inner}{names.get(role, role)}{dot}{ending}"
