"""Models by name from a hub: what a name means, fetching, and what was fetched before."""

from hotcold.gguf_io.hub.names import PREFIX

__all__ = ["PREFIX"]
