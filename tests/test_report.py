"""Pages and pictures: charts, pairing of truth and detections, sheets, and that a page needs nothing but itself."""

import json
import math
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from setdet.cli import main
from setdet.data.schema import Record
from setdet.detections import Detections
from setdet.draw import PALETTE
from setdet.errors import DataError, UsageError
from setdet.metrics.calibration import calibration
from setdet.report.bars import Bar, bar_chart, reliability_chart, short, stacked_chart
from setdet.report.charts import Series, line_chart, ticks
from setdet.report.compare import differences, over_seeds, read_run, write_comparison
from setdet.report.demo import write_demo_report
from setdet.report.measured import Measured
from setdet.report.page import write_page
from setdet.report.pairing import confusion_matrix, pair
from setdet.report.run import curves, read_epochs
from setdet.report.scatter import Cloud, scatter_chart
from setdet.report.sheet import add_legend, contact_sheet, draw_found_and_true, encode

NAMES = ("crack", "<b>pit</b>")


def _record(
    boxes: list[list[float]], labels: list[int], *, crowd: list[bool] | None = None, image: Path = Path("a.png")
) -> Record:
    return Record(
        image=image,
        height=100,
        width=100,
        boxes_xyxy_px=np.array(boxes, np.float32).reshape(-1, 4),
        labels=np.array(labels, np.int64),
        crowd=np.array(crowd or [False] * len(labels), bool),
    )


def _found(boxes: list[list[float]], labels: list[int], scores: list[float]) -> Detections:
    return Detections.from_arrays(
        boxes_xyxy_px=boxes, scores=scores, labels=labels, class_names=NAMES, image_size=(100, 100), source="a.png"
    )


def test_pairing_prefers_the_own_class_and_counts_what_is_left() -> None:
    record = _record([[0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60]], [0, 1, 0])
    found = _found([[0, 0, 10, 10], [80, 80, 90, 90], [0, 0, 10, 10]], [1, 0, 1], [0.9, 0.8, 0.7])
    pairing = pair(record, found)
    assert pairing.pairs == ((1, 0), (0, 2))  # the best one takes the box of its class, though another overlaps more
    assert (pairing.wrong_class, pairing.missed, pairing.spurious) == (1, (2,), (1,))
    assert (pairing.right, pairing.mistakes) == (1, 3)


def test_crowds_are_neither_to_be_found_nor_a_mistake() -> None:
    record = _record([[0, 0, 50, 50]], [0], crowd=[True])
    pairing = pair(record, _found([[0, 0, 50, 45]], [0], [0.9]))
    assert (pairing.pairs, pairing.missed, pairing.spurious) == ((), (), ())


def test_confusion_matrix_counts_every_box_once() -> None:
    records = [_record([[0, 0, 10, 10], [50, 50, 60, 60]], [0, 1]), _record([], [])]
    found = [_found([[0, 0, 10, 10]], [1], [0.9]), _found([[1, 1, 9, 9]], [0], [0.6])]
    matrix = confusion_matrix(records, found, num_classes=2)
    assert matrix.tolist() == [[0, 1, 0], [0, 0, 1], [1, 0, 0]]


def test_confusion_matrix_of_nothing_is_zero() -> None:
    assert confusion_matrix([_record([], [])], [_found([], [], [])], num_classes=2).sum() == 0


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 0.43, [0, 0.1, 0.2, 0.3, 0.4, 0.5]),
        (1, 72, [0, 20, 40, 60, 80]),
        (3, 3, [3, 4, 5, 6]),
        (0, 0, [0, 0.2, 0.4, 0.6, 0.8, 1]),
    ],
)
def test_ticks_are_round_and_span_the_data(low: float, high: float, expected: list[float]) -> None:
    found = ticks(low, high)
    assert found[0] <= low and found[-1] >= high
    if low != 3:
        assert found == pytest.approx(expected)


def test_chart_escapes_names_and_leaves_out_what_is_not_finite() -> None:
    chart = str(
        line_chart(
            [Series("<script>", [(1, 0.5), (2, math.nan), (3, 0.7)]), Series("b", [(1, 0.1)])],
            x_label="epoch",
            y_label="AP",
        )
    )
    assert "<script>" not in chart
    assert chart.count("<circle") == 3
    assert "nan" not in chart
    assert "Nothing was measured" in line_chart([Series("a", [])], x_label="x", y_label="y")


def test_chart_puts_larger_values_higher() -> None:
    chart = str(line_chart([Series("a", [(0, 0.0), (1, 1.0)])], x_label="x", y_label="y"))
    (first, second) = re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', chart)
    assert float(second[0]) > float(first[0])
    assert float(second[1]) < float(first[1])
    heights = []
    for from_zero in (True, False):
        losses = Series("loss", [(0, 100.0), (1, 101.0)])
        chart = str(line_chart([losses], x_label="x", y_label="y", from_zero=from_zero))
        low, high = map(float, re.findall(r'cy="([\d.]+)"', chart))
        heights.append(low - high)
    assert 0 < 20 * heights[0] < heights[1]


def test_clouds_and_their_histograms_rise_with_their_values() -> None:
    few, many = np.array([0.1, 0.9]), np.array([0.1, 0.1, 0.1, 0.9])
    chart = str(scatter_chart([Cloud("a", x=few, y=few, all_x=many, all_y=many)], x_label="x", y_label="y"))
    low, high = (tuple(map(float, dot)) for dot in re.findall(r'cx="([\d.]+)" cy="([\d.]+)" r="2.2"', chart))
    assert high[0] > low[0] and high[1] < low[1]
    above, beside = (
        [tuple(map(float, corner.split(","))) for corner in points.split()]
        for points in re.findall(r'<polyline class="s0" points="([^"]+)"', chart)
    )
    bar = (high[0] - low[0]) / 20  # about as wide as one of 25 between 0 and 1
    assert min(above, key=lambda corner: corner[1])[0] == pytest.approx(low[0], abs=bar)
    assert max(beside, key=lambda corner: corner[0])[1] == pytest.approx(low[1], abs=bar)


def test_bars_of_scores_show_what_is_right_and_what_was_promised() -> None:
    chart = str(reliability_chart(calibration(np.full(4, 0.75, np.float32), np.array([True, False, False, False]))))
    (right,), (gap,) = (
        re.findall(rf'<rect class="{kind}" x="[\d.]+" y="([\d.]+)" width="[\d.]+" height="([\d.]+)"', chart)
        for kind in ("s0", "gap")
    )
    (top, height), (gap_top, gap_height) = (tuple(map(float, one)) for one in (right, gap))
    assert gap_height == pytest.approx(2 * height, abs=0.3) and gap_top + gap_height == pytest.approx(top, abs=0.2)
    assert "4 detections, mean score 0.750, 0.250 of them right" in chart
    assert [short(count) for count in (950, 1234, 31_400, 2_400_000)] == ["950", "1.2k", "31k", "2.4M"]


def test_sheet_holds_every_picture_in_its_place() -> None:
    pictures = [
        np.full((50, 100, 3), 200, np.uint8),
        np.full((40, 20, 3), 100, np.uint8),
        np.full((9, 9, 3), 50, np.uint8),
    ]
    sheet = contact_sheet(pictures, columns=2, tile=40, gap=4)
    assert sheet.shape == (2 * 44 + 4, 2 * 44 + 4, 3)
    assert sheet[24, 24, 0] == 200 and sheet[24, 68, 0] == 100 and sheet[68, 24, 0] == 50
    assert sheet[6, 24, 0] == sheet[68, 68, 0] == sheet[0, 0, 0]  # beside a wide picture, no picture, the gap
    with pytest.raises(UsageError, match="at least one"):
        contact_sheet([])


def test_truth_is_drawn_beside_what_was_found() -> None:
    image = np.zeros((100, 100, 3), np.uint8)
    nothing = _found([], [], [])
    drawn = draw_found_and_true(image, nothing, _record([[10, 10, 60, 60]], [0]), min_side=200)
    assert drawn.shape == (200, 200, 3)
    assert drawn[20, 20:120].max() == 255 and drawn[19:23, 20:120].min() == 0  # a line, and dashed
    assert not draw_found_and_true(image, nothing, _record([], []), min_side=0).any()
    assert not image.any()


def test_encoded_pictures_decode_to_themselves() -> None:
    image = np.random.default_rng(0).integers(0, 255, (8, 9, 3), dtype=np.uint8)
    decoded = cv2.imdecode(np.frombuffer(encode(image), np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB), image)


def _measured(folder: Path) -> Measured:
    records, found = [], []
    for name in ("a.png", "<i>b.png"):
        path = folder / name
        path.write_bytes(encode(np.full((100, 100, 3), 90, np.uint8)))
        records.append(_record([[0, 0, 10, 10], [50, 50, 60, 60]], [0, 1], image=path))
        found.append(_found([[0, 0, 10, 10]], [0], [0.9]))
    row = {"boxes": 2, "ap": 0.5, "ap50": 0.6, "precision": 1.0, "recall": 0.5}
    values = {
        "ap": 0.4,
        "ap50": None,
        "precision": 1.0,
        "recall": 0.5,
        "confidence": 0.3,
        "per_class": [{"name": NAMES[0], **row}, {"name": NAMES[1], **row, "ap50": 0.1, "ap": None}],
    }
    return Measured(values=values, records=tuple(records), detections=tuple(found), class_names=NAMES)


def test_what_pages_say_of_results() -> None:
    boxes = [[0, 0, 10, 10], [20, 20, 30, 30], [50, 50, 90, 90], [0, 60, 30, 99]]
    record = _record(boxes, [0, 0, 1, 1], crowd=[False, False, False, True])
    found = _found([*boxes[:2], [40, 0, 48, 8]], [0, 1, 0], [0.9, 0.8, 0.7])
    rows = [("empty", 0, None), ("good", 2, 0.9), ("never found", 1, 0.0)]
    values = {"per_class": [{"name": name, "boxes": count, "ap50": ap50} for name, count, ap50 in rows]}
    measured = Measured(values=values, records=(record,), detections=(found,), class_names=NAMES)
    assert [row["name"] for row in measured.classes()] == ["never found", "good", "empty"]
    assert measured.caption(0) == "1 of 3 found, 1 of the wrong class, 1 invented"
    cells = [row["cells"] for row in measured.matrix()["rows"]]
    assert [[cell["text"] for cell in row] for row in cells] == [["1", "1", "·"], ["·", "·", "1"], ["1", "·", ""]]
    # Colours are shares of the true boxes of a class.
    assert [cell["strength"] for cell in cells[0]] == [pytest.approx(0.12 + 0.6 / 2)] * 2 + [None]
    assert [[cell["right"] for cell in row] for row in cells] == np.eye(3, dtype=bool).tolist()


def _assert_self_contained(html: str) -> None:
    assert not re.search(r"https?://|<script|<link|@import|url\(", html)
    for address in re.findall(r'src="([^"]{0,30})', html):
        assert address.startswith("data:image/")


def test_demo_page_is_one_file_and_names_cannot_break_it(tmp_path: Path) -> None:
    measured = _measured(tmp_path)
    page = write_demo_report(
        tmp_path / "report.html", measured=measured, weights="rtdetr-n/surfaces", lead="What was done.", commands=[]
    )
    html = page.read_text(encoding="utf-8")
    _assert_self_contained(html)
    assert html.count("<img") == 2
    assert "<b>pit</b>" not in html and "<i>b.png" not in html
    assert html.index("&lt;b&gt;pit") < html.index(">crack<")  # weakest first
    assert "1 of 2 found" in html


def test_run_page_shows_curves_and_mistakes(tmp_path: Path) -> None:
    measured = _measured(tmp_path)
    epochs = [
        {
            "kind": "epoch",
            "epoch": n,
            "minutes": 2.0 * n,
            "loss": 9.0 / n,
            "learning_rate": 1e-4,
            "val": {"ap": 0.1 * n, "ap50": None},
        }
        for n in (1, 2, 3)
    ]
    charts = curves(epochs)
    assert [caption for caption, _ in charts][:2] == ["Accuracy over epochs", "Accuracy over minutes"]
    assert str(charts[0][1]).count("<circle") == 3  # AP50 was not measured, AP was
    page = write_page(
        tmp_path / "run.html",
        "run.html",
        title="run",
        lead="lead",
        charts=charts,
        config="model: x",
        figures=measured.figures(),
        classes=measured.classes(),
        matrix=measured.matrix(),
        worst=measured.pictures()[:1],
        sections=(),
        confidence=measured.confidence,
    )
    html = page.read_text(encoding="utf-8")
    _assert_self_contained(html)
    assert html.count("<img") == 1
    assert html.count("<svg") == 4
    assert not list(tmp_path.glob(".*part*"))


def test_epochs_of_a_broken_log_are_an_error(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    with pytest.raises(DataError, match=r"cannot be read \(No such file"):
        read_epochs(log)
    log.write_text(json.dumps({"kind": "epoch", "epoch": 1}) + "\n" + json.dumps({"kind": "step"}) + "\n")
    assert [line["epoch"] for line in read_epochs(log)] == [1]
    log.write_text("{\n")
    with pytest.raises(DataError, match="JSON"):
        read_epochs(log)


def test_long_names_leave_room_for_bars() -> None:
    name = "hf:some-company/rtdetr_r18vd_" + "surface_line_" * 4
    widths = [
        [float(width) for width in re.findall(r'<rect [^>]*width="([-.0-9]+)"', str(chart))]
        for chart in (
            bar_chart([Bar(name, 0.2, note="n" * 30), Bar("b", 0.8)], label="AP"),
            stacked_chart({name: [0.2, 0.8]}, parts=["small", "none"], label="share"),
        )
    ]
    assert all(few > 20 and many == pytest.approx(4 * few, abs=0.1) for few, many in (row[-2:] for row in widths))
    assert f"<title>{name}</title>" in str(bar_chart([Bar(name, 0.2)], label="AP"))


def test_a_legend_stands_below_the_sheet() -> None:
    sheet = np.zeros((100, 600, 3), np.uint8)
    shown = add_legend(sheet)
    assert shown.shape == (140, 600, 3)
    np.testing.assert_array_equal(shown[:100], sheet)
    assert (shown[100:] == PALETTE[0]).all(axis=2).any() and (shown[100:] == 255).all(axis=2).any()


def _run_folder(folder: Path, *, seed: int, ap50: list[float], **settings: object) -> Path:
    folder.mkdir()
    augment = "{iou_crop: 0.3}"
    lines = [f"{name}: {value}" for name, value in settings.items()]
    (folder / "config.yaml").write_text("\n".join([f"seed: {seed}", f"augment: {augment}", *lines]))
    with (folder / "metrics.jsonl").open("w") as file:
        for epoch, value in enumerate(ap50, start=1):
            values = {"ap50": value, "ap": value / 2, "precision": 0.5, "recall": 0.25}
            line = {"kind": "epoch", "epoch": epoch, "step": epoch, "minutes": 2.0 * epoch, "loss": 9.0 / epoch}
            file.write(json.dumps({**line, "val": values}) + "\n")
    return folder


def test_runs_side_by_side(tmp_path: Path) -> None:
    first = read_run(_run_folder(tmp_path / "a", seed=0, ap50=[0.1, 0.4], epochs=2))
    second = read_run(_run_folder(tmp_path / "b", seed=1, ap50=[0.2, 0.5], epochs=2))
    other = read_run(_run_folder(tmp_path / "<c>", seed=0, ap50=[0.3], epochs=1))
    assert first.to_dict() == {
        "run": "a",
        "epoch": 2,
        "minutes": 4.0,
        "measured_on": "val",
        "ap50": 0.4,
        "ap": 0.2,
        "precision": 0.5,
        "recall": 0.25,
        "best": (2, 0.2),
        "flat_since": None,
        "trend": "still rising, best 0.200 in epoch 2",
    }
    assert other.to_dict()["trend"] == "–"  # of one evaluation
    assert differences([first, second, other]) == {"seed": [0, 1, 0], "epochs": [2, 2, 1]}
    (group,) = over_seeds([first, second, other])
    assert group["runs"] == ["a", "b"]
    assert group["ap50"] == pytest.approx((0.45, 0.1 / math.sqrt(2)))
    unfinished = read_run(_run_folder(tmp_path / "d", seed=2, ap50=[0.1], epochs=2))
    assert over_seeds([first, first, unfinished]) == [], "neither a run beside itself nor one that is not as far"
    page = write_comparison(tmp_path / "page.html", [first, second, other]).read_text(encoding="utf-8")
    assert "0.450 ± 0.071" in page and "&lt;c&gt;" in page and "<c>" not in page
    assert page.count("<polyline") == 2 * 15 and "mAP50: 0.5" not in page  # each line has its key
    with pytest.raises(UsageError, match="7 runs"):
        write_comparison(tmp_path / "page.html", [first] * 7)
    with pytest.raises(DataError, match="Expected the folder of a training run"):
        read_run(tmp_path)


def test_runs_in_folders_of_one_name_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = []
    for parent in ("a", "b"):
        (tmp_path / parent).mkdir()
        folders.append(_run_folder(tmp_path / parent / "run", seed=0, ap50=[0.1]))
    assert main(["report", *map(str, folders), "--out", str(tmp_path / "page.html"), "--json"]) == 0
    assert [run["run"] for run in json.loads(capsys.readouterr().out)["runs"]] == ["a/run", "b/run"]


def test_a_run_that_a_crash_cut_short_has_a_report(tmp_path: Path) -> None:
    folder = _run_folder(tmp_path / "a", seed=0, ap50=[0.1, 0.2])
    log = folder / "metrics.jsonl"
    log.write_text(log.read_text() + '{"kind": "epo')
    assert len(read_run(folder).measured) == 2
    log.write_text('{"kind": "epo\n' + log.read_text())
    with pytest.raises(DataError, match="line 1 is not JSON"):
        read_run(folder)
    for content, message in ((b"\n3\n", "line 2 is no JSON object"), (b'{"kind": "\xff"}\n', "line 1 is not JSON")):
        log.write_bytes(content)
        with pytest.raises(DataError, match=message):
            read_run(folder)
    (folder / "config.yaml").write_bytes(b"name: \xfc")
    with pytest.raises(DataError, match=r"config\.yaml: cannot be read"):
        read_run(folder)
    (folder / "config.yaml").write_text("")
    with pytest.raises(DataError, match=r"config\.yaml: holds no settings"):
        read_run(folder)


def test_a_run_is_flat_since_its_last_gain(tmp_path: Path) -> None:
    run = read_run(_run_folder(tmp_path / "a", seed=0, ap50=[0.2, 0.6, 0.4, 0.608, 0.604]))
    assert run.flat_since == 2  # mAP50-95, half of mAP50 here, rose from 0.300 to 0.304 after it
    rising = read_run(_run_folder(tmp_path / "b", seed=0, ap50=[0.2, 0.4, 0.6]))
    assert rising.flat_since is None
    nothing = read_run(_run_folder(tmp_path / "c", seed=0, ap50=[0.0, 0.0, 0.002]))
    assert nothing.flat_since == 1
    bare = read_run(_run_folder(tmp_path / "d", seed=0, ap50=[0.2, 0.4]))
    for line in bare.measured:
        line["val"]["ap"] = None
    assert bare.trend == "–"
    page = write_comparison(tmp_path / "page.html", [run, rising]).read_text(encoding="utf-8")
    assert "flat since epoch 2, best 0.304 in epoch 4</td>" in page and "still rising, best 0.300" in page
