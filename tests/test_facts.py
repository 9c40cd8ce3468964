"""The figures that `setdet models` prints, counted again."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from setdet.cli import main
from setdet.models.deploy import fold
from setdet.models.facts import FACTS
from setdet.models.rtdetr import RTDETR, build_model
from setdet.models.variants import MODELS

PUBLISHED_GFLOPS = {
    "rtdetr-r18": 60,
    "rtdetr-r34": 92,
    "rtdetr-r50m": 100,
    "rtdetr-r50": 136,
    "rtdetr-r101": 259,
    "rtdetr-hgnetv2-l": 110,
    "rtdetr-hgnetv2-x": 234,
    "rtdetr-hgnetv2-h": 490,
}


def count_gflops(model: RTDETR) -> float:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, 640, 640, device="meta"))
    return counter.get_total_flops() / 1e9


@pytest.mark.parametrize("name", MODELS)
def test_parameters_and_work_are_as_stated(name: str) -> None:
    with torch.device("meta"):
        model = build_model(name).eval()
    facts = FACTS[name]
    assert sum(parameter.numel() for parameter in model.parameters()) == facts.parameters
    if MODELS[name].decoder.sampling == "bilinear" and not name.startswith("rtdetrv2-"):  # the others are no different
        assert count_gflops(model) == pytest.approx(facts.gflops, abs=0.06)
        assert count_gflops(fold(model)) == pytest.approx(facts.gflops_folded, abs=0.06)


@pytest.mark.parametrize("name", PUBLISHED_GFLOPS)
def test_work_is_near_the_published_figure(name: str) -> None:
    assert FACTS[name].gflops == pytest.approx(PUBLISHED_GFLOPS[name], rel=0.02)


def test_the_published_multiply_adds_of_r50() -> None:
    assert FACTS["rtdetr-r50"].gflops / 2 == pytest.approx(68.348, rel=0.01)


def test_every_model_has_facts_and_says_where_its_accuracy_comes_from() -> None:
    assert FACTS.keys() == MODELS.keys()
    assert {name for name, facts in FACTS.items() if facts.coco_ap is None} == {"rtdetr-n"}
    assert all((facts.coco_ap is None) == (facts.source is None) for facts in FACTS.values())


def test_the_command_prints_them_without_building_a_model(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("setdet.models.rtdetr.RTDETR.__init__", None)
    assert main(["models"]) == 0
    printed = capsys.readouterr()
    lines = {line.split()[0]: line for line in printed.out.splitlines() if line}
    assert lines["rtdetr-r50"].split()[1:6] == ["42.9", "M", "135.7", "131.8", "53.1"]
    assert lines["rtdetr-n"].split()[1:6] == ["4.3", "M", "12.4", "12.1", "–"]
    assert "https://github.com/lyuwenyu/RT-DETR/" in printed.err
