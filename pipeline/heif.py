"""HEIC and other HEIF pictures, as phones write them: known by their first bytes, read by the package pillow-heif."""

import importlib

INSTALL = "pip install 'fewpairs[heic]'"
START = 64
"""Bytes that `is_heif` wants to see."""

_BRANDS = frozenset({b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs"})


def is_heif(start: bytes) -> bool:
    """Tell whether a file that starts like this is HEIF with HEVC inside; AVIF, its sister, is Pillow's own.

    The first box, `ftyp`, lists the brands that a file is compatible with (ISO/IEC 14496-12 and 23008-12).
    """
    if start[4:8] != b"ftyp":
        return False
    brands = (start[place : place + 4] for place in range(8, min(int.from_bytes(start[:4]), START), 4))
    return not _BRANDS.isdisjoint(brands)


def register() -> bool:
    """Let Pillow open HEIF from now on; return whether the package is there to do so."""
    try:
        importlib.import_module("pillow_heif").register_heif_opener()
    except ImportError:
        return False
    return True
