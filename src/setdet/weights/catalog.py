"""Weights by name. No torch."""

from pathlib import Path

from pydantic import Field

from setdet.config import Config
from setdet.errors import WeightsError
from setdet.models.variants import MODELS

_PACKAGED = Path(__file__).parent / "packaged"


class Entry(Config):
    """Weights that can be asked for by name."""

    name: str = Field(description="model/data, as in rtdetr-n/surfaces")
    file: str = Field(description="file inside the package")
    trained_on: str
    licence: str = "Apache-2.0"


CATALOG: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry(
            name="rtdetr-n/surfaces",
            file="rtdetr-n-surfaces.safetensors",
            trained_on="generated steel surfaces (`setdet data make surfaces`), six kinds of defect",
        ),
    )
}


def resolve(source: str | Path) -> Path:
    """The file that a user means: an existing file, a run folder, or a name in the catalog.

    Of a run folder it is `best.safetensors`, or `last.safetensors` where there is no best one.

    Raises:
        WeightsError: none of the three; the message lists what there is.
    """
    path = Path(source)
    if path.is_dir():
        for name in ("best.safetensors", "last.safetensors"):
            if (path / name).is_file():
                return path / name
        raise WeightsError(f"{path}: is a folder without best.safetensors or last.safetensors, so no run folder.")
    if path.is_file():
        return path
    name = str(source)
    if name in CATALOG:
        return _PACKAGED / CATALOG[name].file
    known = ", ".join(CATALOG)
    if name in MODELS:
        raise WeightsError(
            f"'{name}' is a model, not weights. Say which weights: {known}, or the folder of a training run."
        )
    raise WeightsError(f"'{name}': there is no such file or folder, and no such name in the catalog ({known}).")
