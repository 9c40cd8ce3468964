"""Self-contained HTML: everything a page shows is inside the one file, and nothing is asked of any network."""

import base64
import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from numpy.typing import NDArray

from setdet.data.writing import write_atomically
from setdet.report.sheet import encode

# Autoescape: class and file names come from the user's data and may hold markup.
_ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def write_page(path: Path, template: str, **content: Any) -> Path:
    """Fills `template` and writes it atomically to `path`, which is returned."""
    write_atomically(path, _ENVIRONMENT.get_template(template).render(version=_version(), **content))
    return path


def write_values(path: Path, values: dict[str, Any]) -> None:
    """Writes figures as JSON, which must be finite.

    Raises:
        WriteError: the file cannot be written.
    """
    write_atomically(path, json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def data_uri(image: NDArray[np.uint8], *, kind: Literal["jpeg", "png"] = "jpeg") -> str:
    """An RGB uint8 picture (height, width, 3) as the address of an <img> that holds the picture itself."""
    return f"data:image/{kind};base64,{base64.b64encode(encode(image, kind=kind)).decode('ascii')}"


def _version() -> str:
    try:
        return version("setdet")
    except PackageNotFoundError:
        return "(from its source)"
