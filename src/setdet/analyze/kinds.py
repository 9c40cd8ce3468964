"""What the kinds of error are called, and their colours, the same in tables, charts and pictures."""

from dataclasses import dataclass

from setdet.analyze.ledger import Kind


@dataclass(frozen=True)
class Named:
    """How a kind is shown.

    Attributes:
        key: in JSON.
        name: in words.
        color: RGB, of Okabe and Ito's palette.
        meaning: in one sentence.
    """

    key: str
    name: str
    color: tuple[int, int, int]
    meaning: str


RIGHT = Named("right", "right", (0, 158, 115), "Overlaps a box of its class by half or more, the first to do so.")
MISSED = Named(
    "missed", "missed", (240, 228, 66), "A true box that nothing found, nor came near as a wrong class or a bad box."
)
KINDS = {
    Kind.WRONG_CLASS: Named(
        "wrong_class", "wrong class", (230, 159, 0), "Overlaps a box by half or more, but of another class."
    ),
    Kind.BAD_BOX: Named(
        "bad_box", "bad box", (86, 180, 233), "Of the right class, but overlaps its box by a tenth to a half only."
    ),
    Kind.BOTH: Named(
        "both", "class and box", (0, 114, 178), "Near a box of another class, and overlaps it by less than half."
    ),
    Kind.DUPLICATE: Named(
        "duplicate", "duplicate", (204, 121, 167), "Right, but a detection with a higher score has found the box."
    ),
    Kind.BACKGROUND: Named(
        "background", "background", (213, 94, 0), "Overlaps nothing by a tenth or more: there is nothing."
    ),
}
