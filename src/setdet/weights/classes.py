"""The classes of COCO: 80 labels from 0 in training, ids from 1 to 90 with gaps in annotation files. No torch."""

COCO_CATEGORIES: dict[int, str] = dict(
    [
        *enumerate("person bicycle car motorcycle airplane bus train truck boat".split(), start=1),
        (10, "traffic light"),
        (11, "fire hydrant"),
        (13, "stop sign"),
        (14, "parking meter"),
        *enumerate("bench bird cat dog horse sheep cow elephant bear zebra giraffe".split(), start=15),
        *enumerate("backpack umbrella".split(), start=27),
        *enumerate("handbag tie suitcase frisbee skis snowboard".split(), start=31),
        (37, "sports ball"),
        (38, "kite"),
        (39, "baseball bat"),
        (40, "baseball glove"),
        (41, "skateboard"),
        (42, "surfboard"),
        (43, "tennis racket"),
        (44, "bottle"),
        (46, "wine glass"),
        *enumerate("cup fork knife spoon bowl banana apple sandwich orange broccoli carrot".split(), start=47),
        (58, "hot dog"),
        *enumerate("pizza donut cake chair couch".split(), start=59),
        (64, "potted plant"),
        (65, "bed"),
        (67, "dining table"),
        (70, "toilet"),
        *enumerate("tv laptop mouse remote keyboard".split(), start=72),
        (77, "cell phone"),
        *enumerate("microwave oven toaster sink refrigerator".split(), start=78),
        *enumerate("book clock vase scissors".split(), start=84),
        (88, "teddy bear"),
        (89, "hair drier"),
        (90, "toothbrush"),
    ]
)
"""Name by category id; the gaps are ids that no annotation has."""

COCO_CLASSES: tuple[str, ...] = tuple(COCO_CATEGORIES.values())
"""Name by label: the order of the ids, without gaps."""

# Some label files that are used with COCO keep the names of Pascal VOC where the two differ.
_VOC_SPELLING = {
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "motorbike": "motorcycle",
    "pottedplant": "potted plant",
    "sofa": "couch",
    "tvmonitor": "tv",
}


def default_class_names(count: int) -> tuple[str, ...]:
    """Names for a checkpoint that brings none.

    COCO's for 80 classes; for 91, whose labels are category ids, COCO's with `class_N` in the gaps; else `class_N`.
    """
    if count == len(COCO_CLASSES):
        return COCO_CLASSES
    known = COCO_CATEGORIES if count == max(COCO_CATEGORIES) + 1 else {}
    return tuple(known.get(label, f"class_{label}") for label in range(count))


def with_coco_spelling(names: tuple[str, ...]) -> tuple[str, ...]:
    """COCO's own names, if these are COCO's classes with some in the spelling of Pascal VOC; else `names`."""
    spelled = tuple(_VOC_SPELLING.get(name, name) for name in names)
    return spelled if spelled == COCO_CLASSES else names


def category_ids(names: tuple[str, ...]) -> tuple[int, ...]:
    """The ids of classes in annotation files: COCO's own, which have gaps, for its 80 classes; else from 1 on."""
    return tuple(COCO_CATEGORIES) if names == COCO_CLASSES else tuple(range(1, len(names) + 1))
