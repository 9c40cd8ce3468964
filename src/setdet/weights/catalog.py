"""Weights by name. No torch."""

from pathlib import Path
from shlex import quote

from pydantic import Field

from setdet.config import Config, suggest
from setdet.errors import WeightsError
from setdet.models.variants import MODELS
from setdet.weights import hub
from setdet.weights.download import cache_folder, fetch

_FILES = (".safetensors", ".pth", ".pt", ".pt2", ".onnx", ".xml", ".engine")
_PACKAGED = Path(__file__).parent / "packaged"
_RELEASES = "https://github.com/lyuwenyu/storage/releases/download"
_AUTHORS = "https://github.com/lyuwenyu/RT-DETR"


class Entry(Config):
    """Weights that can be asked for by name."""

    name: str = Field(description="model/data, as in rtdetr-n/surfaces")
    file: str = Field(description="name of the file: in the package, or in the cache")
    url: str | None = Field(default=None, description="where it is downloaded from; None: it is in the package")
    trained_on: str
    licence: str = "Apache-2.0"
    coco_ap: float | None = Field(default=None, description="COCO val2017 AP, as its makers publish it")
    source: str | None = Field(default=None, description="who says so")

    @property
    def model(self) -> str:
        """The model that these are weights of."""
        return self.name.partition("/")[0]

    def path(self) -> Path:
        """The file on this machine; what is not in the package is downloaded on first use.

        Raises:
            WeightsError: it cannot be downloaded, or what is there was changed.
        """
        if self.url is None:
            return _PACKAGED / self.file
        return fetch(self.url, cache_folder() / self.name / self.file)


def _published(name: str, file: str, ap: float | None, *, release: str = "v0.1", code: str = "rtdetr") -> Entry:
    """Weights of the RT-DETR authors; what they were trained on is in the name."""
    data = {
        "coco": "COCO train2017",
        "objects365": "Objects365; classes have numbers for names",
        "objects365-coco": "Objects365, then COCO train2017",
    }
    return Entry(
        name=name,
        file=file,
        url=f"{_RELEASES}/{release}/{file}",
        trained_on=data[name.partition("/")[2]],
        coco_ap=ap,
        source=f"{_AUTHORS}/tree/main/{code}_pytorch",
    )


def _published_v2(name: str, file: str, ap: float, *, release: str = "v0.1") -> Entry:
    return _published(name, file, ap, release=release, code="rtdetrv2")


CATALOG: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry(
            name="rtdetr-n/surfaces",
            file="rtdetr-n-surfaces.safetensors",
            trained_on="generated steel surfaces (`setdet data make surfaces`), six kinds of defect",
        ),
        Entry(
            name="rtdetr-n/neu-det",
            file="rtdetr-n-neu-det.safetensors",
            trained_on="rtdetr-n/surfaces, then NEU-DET's training split, 224 pixels",
            source="docs/studies/neu-det.md",
        ),
        Entry(
            name="rtdetr-r18/neu-det",
            file="rtdetr-r18-neu-det.safetensors",
            trained_on="generated steel surfaces, then NEU-DET's training split, 224 pixels",
            source="docs/studies/neu-det.md",
        ),
        _published("rtdetr-r18/coco", "rtdetr_r18vd_dec3_6x_coco_from_paddle.pth", 46.4),
        _published("rtdetr-r34/coco", "rtdetr_r34vd_dec4_6x_coco_from_paddle.pth", 48.9),
        _published("rtdetr-r50m/coco", "rtdetr_r50vd_m_6x_coco_from_paddle.pth", 51.3),
        _published("rtdetr-r50/coco", "rtdetr_r50vd_6x_coco_from_paddle.pth", 53.1),
        _published("rtdetr-r101/coco", "rtdetr_r101vd_6x_coco_from_paddle.pth", 54.3),
        _published("rtdetr-r18/objects365-coco", "rtdetr_r18vd_5x_coco_objects365_from_paddle.pth", 49.0),
        _published("rtdetr-r50/objects365-coco", "rtdetr_r50vd_2x_coco_objects365_from_paddle.pth", 55.2),
        _published("rtdetr-r101/objects365-coco", "rtdetr_r101vd_2x_coco_objects365_from_paddle.pth", 56.2),
        _published("rtdetr-r18/objects365", "rtdetr_r18vd_1x_objects365_from_paddle.pth", None),
        _published("rtdetr-r50/objects365", "rtdetr_r50vd_1x_objects365_from_paddle.pth", None),
        _published_v2("rtdetrv2-r18/coco", "rtdetrv2_r18vd_120e_coco_rerun_48.1.pth", 48.1, release="v0.2"),
        _published_v2("rtdetrv2-r34/coco", "rtdetrv2_r34vd_120e_coco_ema.pth", 49.9),
        _published_v2("rtdetrv2-r50m/coco", "rtdetrv2_r50vd_m_7x_coco_ema.pth", 51.9),
        _published_v2("rtdetrv2-r50/coco", "rtdetrv2_r50vd_6x_coco_ema.pth", 53.4),
        _published_v2("rtdetrv2-r101/coco", "rtdetrv2_r101vd_6x_coco_from_paddle.pth", 54.3),
        _published_v2("rtdetrv2-hgnetv2-l/coco", "rtdetrv2_hgnetv2_l_6x_coco_from_paddle.pth", 52.9),
        _published_v2("rtdetrv2-hgnetv2-x/coco", "rtdetrv2_hgnetv2_x_6x_coco_from_paddle.pth", 54.7),
        _published_v2("rtdetrv2-hgnetv2-h/coco", "rtdetrv2_hgnetv2_h_6x_coco_from_paddle.pth", 56.3),
        _published_v2("rtdetrv2-r18-dsp/coco", "rtdetrv2_r18vd_dsp_3x_coco.pth", 47.4),
        _published_v2("rtdetrv2-r34-dsp/coco", "rrtdetrv2_r34vd_dsp_1x_coco.pth", 49.2),  # its makers spell it so
        _published_v2("rtdetrv2-r50m-dsp/coco", "rtdetrv2_r50vd_m_dsp_3x_coco.pth", 51.4),
        _published_v2("rtdetrv2-r50-dsp/coco", "rtdetrv2_r50vd_dsp_1x_coco.pth", 52.9),
    )
}


def resolve(source: str | Path) -> Path:
    """What a user means by `source`, on this machine: a file, or the folder of a model of `transformers`.

    An existing path comes first: a checkpoint or exported file; a run folder, of which it is `best.safetensors`, or
    `last.safetensors` where there is no best one; OpenVINO's folder, of which it is `model.xml`; a folder with a
    `config.json`. Then `hf:owner/name[@revision]`, and
    the names in the catalog; both are downloaded on first use.

    Raises:
        WeightsError: none of these, and the message lists what there is; or the download failed.
        MissingExtraError: the source is on the Hub, and huggingface_hub is not installed.
    """
    path = Path(source)
    if path.is_dir():
        return _in_folder(path)
    if path.is_file():
        return path
    name = str(source)
    if name.startswith(hub.PREFIX):
        return _in_folder(hub.fetch(name))
    if name in CATALOG:
        return CATALOG[name].path()
    if name in MODELS:
        trained = ", ".join(known for known in CATALOG if CATALOG[known].model == name) or "none by name"
        raise WeightsError(
            f"'{name}' is a model, not weights. Say which weights: {trained}; or the folder of a training run."
        )
    if path.suffix in _FILES:
        raise WeightsError(f"{name}: there is no such file (looked from {Path.cwd()}).")
    raise WeightsError(
        f"'{name}': there is no such file or folder, and no such name in the catalog.{suggest(name, CATALOG)}"
    )


def _in_folder(folder: Path) -> Path:
    for name in ("best.safetensors", "last.safetensors", "model.xml"):
        if (folder / name).is_file():
            return folder / name
    if (folder / "config.json").is_file():
        return folder
    if (folder / "model.safetensors").is_file():
        return folder / "model.safetensors"
    if (folder / "config.yaml").is_file():
        raise WeightsError(
            f"{folder}: is a run that has no weights yet: no epoch of it is complete. Go on with it: setdet train DATA "
            f"--out {quote(str(folder))} --resume"
        )
    raise WeightsError(
        f"{folder}: is a folder without best.safetensors or last.safetensors, so no run folder; without config.json, "
        "so no model of transformers; and without model.xml, so none of OpenVINO."
    )
