"""What is known of every model by name: size, work, published accuracy. No torch.

Work is that of evaluation, on one picture at 640×640 and for the 80 classes of COCO: two operations a multiply-add, in
convolutions and matrix products alone; norms, activations and sampling are not counted. RepVGG blocks count with both
branches, as the authors count them: their figures (60, 92, 100, 136, 259, 110, 234 and 490 from r18 to hgnetv2-h) are
within 2 % of these. `tests/test_facts.py` counts again.
"""

from pydantic import Field

from setdet.config import Config


class Source(Config):
    """Where an accuracy was published."""

    title: str
    url: str


RTDETR = Source(title="RT-DETR", url="https://github.com/lyuwenyu/RT-DETR/blob/main/rtdetr_paddle/README.md")
RTDETR_H = Source(
    title="PaddleDetection", url="https://github.com/PaddlePaddle/PaddleDetection/blob/develop/configs/rtdetr/README.md"
)
RTDETRV2 = Source(title="RT-DETRv2", url="https://github.com/lyuwenyu/RT-DETR/blob/main/rtdetrv2_pytorch/README.md")
# Weights of the first version under the names of the second.
RTDETRV2_CONVERTED = Source(title="RT-DETRv2, converted", url=RTDETRV2.url)


class Facts(Config):
    """Of one model, with 80 classes."""

    parameters: int = Field(description="training heads and backbone norms included")
    gflops: float = Field(description="work on one picture at 640×640")
    gflops_folded: float = Field(description="the same of the folded copy, which is deployed")
    coco_ap: float | None = Field(default=None, description="published AP on COCO val2017 at 640×640, in percent")
    source: Source | None = Field(default=None, description="who published the AP")


_SIZES = {
    "n": (4_304_992, 12.4, 12.1),
    "r18": (20_184_464, 59.4, 58.4),
    "r34": (31_441_668, 91.5, 90.5),
    "r50m": (36_647_020, 98.5, 97.5),
    "r50": (42_944_620, 135.7, 131.8),
    "r101": (76_661_740, 258.5, 249.6),
    "hgnetv2-l": (32_970_732, 109.6, 105.7),
    "hgnetv2-x": (67_468_108, 233.9, 225.0),
    "hgnetv2-h": (125_750_764, 490.4, 474.7),
}
_PUBLISHED = {
    "rtdetr-r18": (46.5, RTDETR),
    "rtdetr-r34": (48.9, RTDETR),
    "rtdetr-r50m": (51.3, RTDETR),
    "rtdetr-r50": (53.1, RTDETR),
    "rtdetr-r101": (54.3, RTDETR),
    "rtdetr-hgnetv2-l": (53.0, RTDETR),
    "rtdetr-hgnetv2-x": (54.8, RTDETR),
    "rtdetr-hgnetv2-h": (56.3, RTDETR_H),
    "rtdetrv2-r18": (48.1, RTDETRV2),
    "rtdetrv2-r34": (49.9, RTDETRV2),
    "rtdetrv2-r50m": (51.9, RTDETRV2),
    "rtdetrv2-r50": (53.4, RTDETRV2),
    "rtdetrv2-r101": (54.3, RTDETRV2_CONVERTED),
    "rtdetrv2-hgnetv2-l": (52.9, RTDETRV2_CONVERTED),
    "rtdetrv2-hgnetv2-x": (54.7, RTDETRV2_CONVERTED),
    "rtdetrv2-hgnetv2-h": (56.3, RTDETRV2_CONVERTED),
    "rtdetrv2-r18-dsp": (47.4, RTDETRV2),
    "rtdetrv2-r34-dsp": (49.2, RTDETRV2),
    "rtdetrv2-r50m-dsp": (51.4, RTDETRV2),
    "rtdetrv2-r50-dsp": (52.9, RTDETRV2),
}


def _facts(name: str) -> Facts:
    parameters, gflops, folded = _SIZES[name.partition("-")[2].removesuffix("-dsp")]
    ap, source = _PUBLISHED.get(name, (None, None))
    return Facts(parameters=parameters, gflops=gflops, gflops_folded=folded, coco_ap=ap, source=source)


FACTS: dict[str, Facts] = {name: _facts(name) for name in ("rtdetr-n", *_PUBLISHED)}
