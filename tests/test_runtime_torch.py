"""The engine that runs a model with PyTorch, against the model itself."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from oracle import randomise
from setdet.errors import SetdetError, UsageError
from setdet.models.deploy import fold
from setdet.models.outputs import RTDETROutput
from setdet.models.postprocess import top_detections
from setdet.models.rtdetr import RTDETR, build_model
from setdet.runtime.base import best_candidates
from setdet.runtime.torch import Precision, TorchRuntime, select_device
from small_data import SMALL


@pytest.fixture
def model() -> RTDETR:
    """With random statistics and boxes that differ, which a fresh model has not."""
    model = build_model(SMALL, num_classes=3)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_mean"):
                tensor.normal_(0, 0.1)
            elif name.endswith("running_var"):
                tensor.uniform_(0.8, 1.2)
            elif "box_head" in name or "class_head" in name:
                tensor.normal_(0, 0.2)
    return model


def pictures(count: int, height: int = 64, width: int = 96) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def test_it_gives_what_the_model_gives(model: RTDETR) -> None:
    images = pictures(2)
    boxes, scores, labels = TorchRuntime(model=model)(images)
    with torch.no_grad():
        output = model.eval()(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255)
    assert boxes.shape == (2, scores.shape[1], 4) and scores.shape == labels.shape
    assert (boxes.dtype, scores.dtype, labels.dtype) == (np.float32, np.float32, np.int64)
    for picture in range(2):
        expected = output.logits[-1, picture].sigmoid().numpy()  # (queries, classes)
        top = np.sort(expected.ravel())[::-1][: scores.shape[1]]
        np.testing.assert_allclose(scores[picture], top, atol=2e-4)
        center, size = np.split(output.boxes_cxcywh[-1, picture].numpy(), 2, axis=1)
        corners = np.concatenate([center - size / 2, center + size / 2], axis=1).clip(0, 1)
        for box, score, label in zip(boxes[picture], scores[picture], labels[picture], strict=True):
            same = np.abs(expected[:, label] - score) < 2e-4
            assert (np.abs(corners[same] - box).max(axis=1) < 2e-3).any()


@pytest.mark.parametrize(
    "changes",
    [
        [],
        ["decoder.rivals=true", "decoder.box_refinement=distribution"],
        ["decoder.sampling=discrete", "decoder.query_source=learned"],
        ["encoder.interaction=cross"],
    ],
)
def test_weights_rounded_once_give_what_autocast_gives(changes: list[str]) -> None:
    model = build_model(SMALL.override(changes)).eval()
    randomise(model, seed=0)
    images = pictures(2)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        output = fold(model)(torch.from_numpy(images).permute(0, 3, 1, 2) / 255)
        expected = top_detections(output, top_k=SMALL.decoder.queries)
    for found, right in zip(TorchRuntime(model=model, precision="bf16")(images), expected, strict=True):
        np.testing.assert_array_equal(found, right.numpy().clip(0, 1) if found.ndim == 3 else right.numpy())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_threads_share_a_runtime(model: RTDETR, precision: Precision) -> None:
    runtime, shown = TorchRuntime(model=model, precision=precision), pictures(4)
    expected = [runtime(shown[index : index + 1])[1] for index in range(4)]
    with ThreadPoolExecutor(4) as cameras:
        found = cameras.map(lambda number: runtime(shown[number % 4][None])[1], range(24))
        for number, scores in enumerate(found):
            np.testing.assert_array_equal(scores, expected[number % 4])


def test_a_gpu_without_room_is_told_with_what_to_do(model: RTDETR, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(RTDETR, "forward", full)
    with pytest.raises(SetdetError, match=r"memory is full \(CUDA out of memory\) with 2 pictures at a time"):
        TorchRuntime(model=model)(pictures(2))


def test_candidates_without_torch_are_those_of_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, boxes = torch.randn(2, 40, 7, generator=generator), torch.rand(2, 40, 4, generator=generator)
    output = RTDETROutput(logits[None], boxes[None], encoder_logits=None, encoder_boxes_cxcywh=None)
    for count in (1, 12, 280, 300):
        found = best_candidates(logits.numpy(), boxes.numpy(), top_k=count)
        for ours, theirs in zip(found, top_detections(output, top_k=min(count, 280)), strict=True):
            np.testing.assert_allclose(ours, theirs.numpy().clip(0, 1) if ours.ndim == 3 else theirs, atol=1e-6)


def test_scores_of_logits_beyond_what_an_exponential_can_tell() -> None:
    logits = np.array([[[100.0, 0.0, -1e4, 1e4]]], np.float32)
    _, scores, labels = best_candidates(logits, np.full((1, 1, 4), 0.5, np.float32), top_k=4)
    assert scores.tolist() == [[1.0, 1.0, 0.5, 0.0]] and labels.tolist() == [[3, 0, 1, 2]]


def test_fewer_layers_and_queries(model: RTDETR) -> None:
    images = pictures(1)
    layers = model.config.decoder.layers
    all_of_it = TorchRuntime(model=model)(images)
    for found, expected in zip(TorchRuntime(model=model, decoder_layers=layers)(images), all_of_it, strict=True):
        np.testing.assert_array_equal(found, expected)
    early = TorchRuntime(model=model, decoder_layers=1, queries=5)(images)
    assert early[0].shape == (1, 5, 4) and not np.allclose(early[1], all_of_it[1][:, :5])
    with pytest.raises(UsageError, match=rf"decoder_layers=9.* 1 to {layers}"):
        TorchRuntime(model=model, decoder_layers=9)


def test_results_are_sorted_and_inside(model: RTDETR) -> None:
    boxes, scores, labels = TorchRuntime(model=model)(pictures(1))
    assert (np.diff(scores) <= 0).all() and (scores >= 0).all() and (scores <= 1).all()
    assert (boxes >= 0).all() and (boxes <= 1).all() and (labels >= 0).all() and (labels < 3).all()


def test_a_picture_alone_is_as_in_a_batch(model: RTDETR) -> None:
    runtime, images = TorchRuntime(model=model), pictures(3)
    together = runtime(images)
    for index in range(3):
        alone = runtime(images[index : index + 1])
        np.testing.assert_allclose(alone[1][0], together[1][index], atol=1e-5)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_precision_is_close_and_stays_float32_outside(model: RTDETR, precision: str) -> None:
    images = pictures(2)
    exact, reduced = TorchRuntime(model=model)(images), TorchRuntime(model=model, precision=precision)(images)  # type: ignore[arg-type]
    assert [part.dtype for part in reduced] == [np.float32, np.float32, np.int64]
    np.testing.assert_allclose(reduced[1], exact[1], atol=0.05)
    assert (reduced[1] != exact[1]).any()


def test_the_model_that_was_given_stays_as_it_is(model: RTDETR) -> None:
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    TorchRuntime(model=model)(pictures(1))
    after = model.state_dict()
    assert model.training and list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_pixels_are_not_moved_and_the_callers_array_is_not_written_to(model: RTDETR) -> None:
    images = pictures(1)
    before = images.copy()
    flipped = images[:, :, ::-1]  # a view with a negative stride
    TorchRuntime(model=model)(images)
    TorchRuntime(model=model)(flipped)
    assert (images == before).all()


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((64, 64, 3), np.uint8), r"found \(64, 64, 3\)"),
        (np.zeros((1, 64, 64, 3), np.float32), "float32"),
        (np.zeros((1, 3, 64, 64), np.uint8), r"\(1, 3, 64, 64\)"),
        (np.zeros((1, 65, 64, 3), np.uint8), "multiples of 32; found height 65"),
        (np.zeros((0, 64, 64, 3), np.uint8), "batch of 0"),
    ],
)
def test_wrong_batches(model: RTDETR, images: np.ndarray, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TorchRuntime(model=model)(images)


def test_wrong_devices_and_precisions(model: RTDETR) -> None:
    with pytest.raises(UsageError, match="no precision 'int8'"):
        TorchRuntime(model=model, precision="int8")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no device 'gpu'"):
        select_device("gpu")
    with pytest.raises(UsageError, match="'meta' is not supported"):
        select_device("meta")
    with pytest.raises(UsageError, match="'cuda:99' is not there"):
        select_device("cuda:99")
    assert select_device("cpu").type == "cpu"
    assert select_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
