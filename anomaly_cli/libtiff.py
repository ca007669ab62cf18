"""Keep libtiff from printing: what is wrong with a file is the reason of its row, no line on stderr."""

from __future__ import annotations

import ctypes

from PIL import _imaging


def silence() -> None:
    """Take libtiff's printing away for this process; what it tells by return values stays.

    Pillow has no setting for that. Where its build hides the functions of libtiff, damaged TIFF files go on printing.
    """
    library = ctypes.CDLL(_imaging.__file__)  # a symbol is looked up in the libraries that it is linked with, too
    for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
        function = getattr(library, name, None)
        if function is not None:
            function.argtypes, function.restype = [ctypes.c_void_p], ctypes.c_void_p
            function(None)
