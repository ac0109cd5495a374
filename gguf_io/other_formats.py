"""Files that are not what their name says, by how they begin: what people have in place of a model."""

DOWNLOAD = "download it again"
TO_CONVERT = "convert its folder with `hotcold convert`"
OLD = "convert the original model again"
OTHER_FORMATS = {
    b"version https://git-lfs": ("a Git LFS pointer", "fetch the real file with `git lfs pull`"),
    b"<!DOCTYPE": ("an HTML page", DOWNLOAD),
    b"<!doctype": ("an HTML page", DOWNLOAD),
    b"<html": ("an HTML page", DOWNLOAD),
    b"{": ("JSON text, as a server answers", DOWNLOAD),
    b"PK\x03\x04": ("a zip or PyTorch file", TO_CONVERT),
    b"\x80\x02": ("a pickle", TO_CONVERT),
    b"lmgg": ("an old GGML file", OLD),
    b"tjgg": ("an old GGJT file", OLD),
    b"fmgg": ("an old GGMF file", OLD),
}
NO_DOWNLOAD = ("a Git LFS pointer", "an HTML page")
"""What stands in for any kind of file."""


def other_format(head: bytes) -> tuple[str, str] | None:
    """What begins so, and what to do; None for anything else. Blanks in front do not count."""
    starts = (other for start, other in OTHER_FORMATS.items() if head.lstrip(b" \t\r\n").startswith(start))
    return next(starts, None)
