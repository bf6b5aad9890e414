"""A figure as the bytes of its files."""

from __future__ import annotations

import io

import numpy as np
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.backends.backend_pdf import PdfFile, RendererPdf
from matplotlib.backends.backend_svg import RendererSVG
from matplotlib.figure import Figure
from PIL import Image

from workers.visualisation.formulas import FORMULAS
from workers.visualisation.plots import style
from workers.visualisation.sheets import POINTS_PER_INCH, Sheet, Sheets

#: Pillow's 6 takes three times as long for files that are a fifth smaller.
_PNG_LEVEL = 3


def rendered(figure: Figure, *kinds: str, dpi: int = 150) -> dict[str, bytes]:
    """The figure's files by their kind: ``png``, of so many dots per inch, ``pdf`` and ``svg``.

    The figure is drawn once, whatever the number of files, and they do not
    hold the time of drawing. It is left with a resolution of 72 dots per inch.
    Raises NotImplementedError for a figure with an image in it.
    """
    with style():
        figure.dpi = POINTS_PER_INCH
        width_in, height_in = figure.get_size_inches()
        sheets = {kind: _SHEETS[kind](width_in, height_in, dpi) for kind in kinds}
        figure.draw(Sheets(list(sheets.values()), *figure.bbox.size))
        return {kind: sheet.finish() for kind, sheet in sheets.items()}


def _png(width_in: float, height_in: float, dpi: int) -> Sheet:
    renderer = RendererAgg(int(width_in * dpi), int(height_in * dpi), dpi)
    renderer.mathtext_parser = FORMULAS

    def finish() -> bytes:
        buffer = io.BytesIO()
        picture = Image.fromarray(np.asarray(renderer.buffer_rgba())).convert("RGB")
        picture.save(buffer, "png", compress_level=_PNG_LEVEL, dpi=(dpi, dpi))
        return buffer.getvalue()

    return Sheet(renderer, finish, dpi / POINTS_PER_INCH)


def _pdf(width_in: float, height_in: float, dpi: int) -> Sheet:
    buffer = io.BytesIO()
    file = PdfFile(buffer, metadata={"CreationDate": None})
    file.newPage(width_in, height_in)
    renderer = RendererPdf(file, dpi, height_in, width_in)
    renderer._text2path.mathtext_parser = FORMULAS

    def finish() -> bytes:
        renderer.finalize()
        file.finalize()
        file.close()
        return buffer.getvalue()

    return Sheet(renderer, finish)


def _svg(width_in: float, height_in: float, dpi: int) -> Sheet:
    file = io.StringIO()
    width, height = width_in * POINTS_PER_INCH, height_in * POINTS_PER_INCH
    renderer = RendererSVG(width, height, file, image_dpi=dpi, metadata={"Date": None})
    renderer._text2path.mathtext_parser = FORMULAS

    def finish() -> bytes:
        renderer.finalize()
        return file.getvalue().encode()

    return Sheet(renderer, finish)


_SHEETS = {"png": _png, "pdf": _pdf, "svg": _svg}
