"""The characters that stand for bytes in a byte-level BPE vocabulary (GPT-2's `bytes_to_unicode`)."""


def byte_characters() -> list[str]:
    """The character that stands for each byte: itself if printable in Latin-1, else one from U+0100 on."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), 256)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


CHARACTER_OF = byte_characters()
BYTE_OF = {character: byte for byte, character in enumerate(CHARACTER_OF)}
