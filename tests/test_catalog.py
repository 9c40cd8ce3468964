"""Weights by name: found, downloaded once, gone on with, checked; and what is said where that is not possible."""

import errno
import functools
import http.server
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors

from setdet.errors import MissingExtraError, WeightsError
from setdet.models.variants import MODELS
from setdet.weights import download
from setdet.weights.catalog import CATALOG, Entry, resolve
from setdet.weights.download import cache_folder, fetch
from setdet.weights.files import load_model

CONTENT = bytes(range(256)) * 20_000


class Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT at /file, with ETag and Range, and cuts the first `cuts` connections half-way."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.cuts, self.requests = CONTENT, 0, list[str]()
        self.etag = '"1"'
        self.url = f"http://127.0.0.1:{self.server_address[1]}/file"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, start = self.server, 0
        asked = self.headers.get("Range", "")
        server.requests.append(asked)
        if self.path != "/file":
            self.send_error(404)
            return
        if asked and self.headers.get("If-Range") == server.etag:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(server.content):
                self.send_error(416)
                return
            self.send_response(206)
        else:
            self.send_response(200)
        body = server.content[start:]
        self.send_header("ETag", server.etag)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if server.cuts:
            server.cuts -= 1
            body = body[: len(body) // 2]
        self.wfile.write(body)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=functools.partial(running.serve_forever, poll_interval=0.01), daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}


class TestDownload:
    def test_once_and_with_its_hash_beside_it(self, server: Server, tmp_path: Path) -> None:
        path = tmp_path / "a" / "w.pth"
        assert fetch(server.url, path) == path and path.read_bytes() == CONTENT
        fetch(server.url, path)
        assert server.requests == [""]
        assert names(path.parent) == {"w.pth", "w.pth.sha256"}

    def test_goes_on_where_the_connection_was_cut(self, server: Server, tmp_path: Path) -> None:
        server.cuts = 2
        assert fetch(server.url, tmp_path / "w.pth").read_bytes() == CONTENT
        half = len(CONTENT) // 2
        assert server.requests == ["", f"bytes={half}-", f"bytes={half + half // 2}-"]
        assert names(tmp_path) == {"w.pth", "w.pth.sha256"}

    def test_goes_on_the_next_time(self, server: Server, tmp_path: Path) -> None:
        server.cuts = 3
        with pytest.raises(
            WeightsError, match=r"cut\)\. 4\.5 MB are here; the next attempt goes on there\. Check the net"
        ):
            fetch(server.url, tmp_path / "w.pth")
        assert not (tmp_path / "w.pth").exists()
        server.requests.clear()
        assert fetch(server.url, tmp_path / "w.pth").read_bytes() == CONTENT
        assert server.requests == ["bytes=4480000-"]

    def test_begins_anew_where_the_file_has_changed_meanwhile(self, server: Server, tmp_path: Path) -> None:
        server.cuts = 3
        with pytest.raises(WeightsError, match="cut"):
            fetch(server.url, tmp_path / "w.pth")
        server.etag, server.content = '"2"', CONTENT[::-1]
        assert fetch(server.url, tmp_path / "w.pth").read_bytes() == CONTENT[::-1]

    def test_begins_anew_where_there_is_nothing_to_go_on_with(self, server: Server, tmp_path: Path) -> None:
        (tmp_path / "w.pth.part").write_bytes(CONTENT)  # whole, and nobody was left to put it in its place
        (tmp_path / "w.pth.part.etag").write_text(server.etag)
        assert fetch(server.url, tmp_path / "w.pth").read_bytes() == CONTENT
        assert server.requests == [f"bytes={len(CONTENT)}-", ""]
        server.requests.clear()
        server.etag, server.cuts = 'W/"1"', 1  # a weak one says nothing of single bytes
        assert fetch(server.url, tmp_path / "other.pth").read_bytes() == CONTENT
        assert server.requests == ["", ""]

    def test_a_missing_file_is_said_with_what_to_do(self, server: Server, tmp_path: Path) -> None:
        with pytest.raises(WeightsError, match=r"/no: the server answers 404 Not Found\. Check .* put it at .*w\.pth"):
            fetch(server.url.replace("/file", "/no"), tmp_path / "w.pth")

    def test_no_network(self, server: Server, tmp_path: Path) -> None:
        server.shutdown()
        server.server_close()
        with pytest.raises(WeightsError, match=r"cannot be downloaded \(.*refused.*\)\. Check the network"):
            fetch(server.url, tmp_path / "w.pth")
        assert names(tmp_path) == set()

    def test_a_file_that_was_put_there_by_hand_is_used(self, tmp_path: Path) -> None:
        (tmp_path / "w.pth").write_bytes(b"x")
        assert fetch("http://127.0.0.1:9/none", tmp_path / "w.pth").read_bytes() == b"x"

    def test_a_changed_file_is_refused(self, server: Server, tmp_path: Path) -> None:
        path = fetch(server.url, tmp_path / "w.pth")
        path.write_bytes(b"changed")
        with pytest.raises(
            WeightsError, match=r"is not the file that it was: its SHA-256 is .*Delete it \(and w.pth.sha"
        ):
            fetch(server.url, path)

    def test_a_folder_that_nobody_can_write_to_will_do(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "w.pth").write_bytes(b"x")

        open_file = Path.open

        def refuse(*_: object, **__: object) -> None:
            raise OSError(errno.EROFS, "Read-only file system")

        def refuse_to_write(self: Path, mode: str = "r", *rest: Any, **others: Any) -> object:
            return refuse() if "w" in mode else open_file(self, mode, *rest, **others)

        monkeypatch.setattr(Path, "open", refuse_to_write)
        assert fetch("http://127.0.0.1:9/none", tmp_path / "w.pth").read_bytes() == b"x"
        monkeypatch.setattr(Path, "mkdir", refuse)
        with pytest.raises(WeightsError, match=r"cannot be written \(Read-only file system\)\. Name another folder"):
            fetch("http://127.0.0.1:9/none", tmp_path / "other" / "w.pth")

    def test_the_cache_can_be_elsewhere(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("SETDET_CACHE", str(tmp_path))
        assert cache_folder() == tmp_path
        monkeypatch.delenv("SETDET_CACHE")
        assert cache_folder() == Path.home() / ".cache" / "setdet"


def test_a_name_is_downloaded_to_the_cache(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    entry = Entry(name="rtdetr-r18/mine", file="w.pth", url=server.url, trained_on="nothing")
    monkeypatch.setitem(CATALOG, entry.name, entry)
    monkeypatch.setenv("SETDET_CACHE", str(tmp_path))
    assert resolve("rtdetr-r18/mine") == tmp_path / "rtdetr-r18" / "mine" / "w.pth"


def test_every_name_is_of_a_model_and_every_address_its_own() -> None:
    addresses = [entry.url for entry in CATALOG.values() if entry.url]
    assert len(set(addresses)) == len(addresses)
    for name, entry in CATALOG.items():
        assert entry.name == name and entry.model in MODELS and entry.licence == "Apache-2.0"
        if entry.url:
            assert entry.url.endswith(f"/{entry.file}") and entry.source
            # Discrete sampling is told by the name of the file alone.
            assert ("_dsp" in entry.file) == entry.model.endswith("-dsp")
            assert ("rtdetrv2" in entry.file) == entry.model.startswith("rtdetrv2")
    assert {entry.model for entry in CATALOG.values()} >= {name for name in MODELS if name.startswith("rtdetrv2-")}


@pytest.mark.parametrize("name", [name for name, entry in CATALOG.items() if entry.url is None])
def test_packaged_weights_load(name: str) -> None:
    info, _ = load_model(resolve(name))
    assert info.model.name == CATALOG[name].model


class TestResolve:
    def test_the_best_weights_of_a_run_come_first(self, tmp_path: Path) -> None:
        with pytest.raises(WeightsError, match="no run folder; without config.json"):
            resolve(tmp_path)
        for name in ("model.safetensors", "last.safetensors", "best.safetensors"):
            (tmp_path / name).touch()
            assert resolve(str(tmp_path)) == tmp_path / name

    def test_a_folder_of_transformers_is_itself(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").touch()
        assert resolve(tmp_path) == tmp_path

    def test_a_wrong_name_gets_a_suggestion(self) -> None:
        with pytest.raises(WeightsError, match="no such name in the catalog. Did you mean 'rtdetr-r50/coco'"):
            resolve("rtdetr-r50/cocoa")
        with pytest.raises(WeightsError, match=r"^surfaces\.onnx: there is no such file \(looked from"):
            resolve("surfaces.onnx")
        with pytest.raises(WeightsError, match="rtdetr-n/surfaces, rtdetr-n/neu-det, rtdetr-r18/neu-det"):
            resolve("zzz")

    def test_a_model_is_not_weights(self) -> None:
        with pytest.raises(
            WeightsError, match="'rtdetr-r18' is a model, not weights. Say which weights: rtdetr-r18/neu-det, "
        ):
            resolve("rtdetr-r18")
        with pytest.raises(WeightsError, match="none by name; or the folder of a training run"):
            resolve("rtdetr-hgnetv2-l")


class TestHub:
    def test_a_model_is_its_snapshot(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        asked = []

        def snapshot(repo: str, *, revision: str | None, allow_patterns: list[str]) -> str:
            asked.append((repo, revision))
            assert "model.safetensors" in allow_patterns and "config.json" in allow_patterns
            return str(tmp_path)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
        (tmp_path / "config.json").touch()
        assert resolve("hf:PekingU/rtdetr_r18vd") == tmp_path
        assert resolve("hf:me/my.model-2@refs/pr/1") == tmp_path
        assert asked == [("PekingU/rtdetr_r18vd", None), ("me/my.model-2", "refs/pr/1")]

    def test_no_network(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        def snapshot(*_: object, **__: object) -> str:
            raise errors.LocalEntryNotFoundError("outgoing traffic has been disabled.\nmore")

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
        with pytest.raises(WeightsError, match=r"cannot be downloaded \(outgoing traffic has been disabled\)\. Check"):
            resolve("hf:PekingU/rtdetr_r18vd")

    def test_without_the_package(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
        with pytest.raises(MissingExtraError, match="pip install 'setdet\\[train\\]'"):
            resolve("hf:PekingU/rtdetr_r18vd")

    @pytest.mark.parametrize("source", ["hf:", "hf:rtdetr", "hf:a/b/c", "hf:a/b@", "hf:../x y"])
    def test_no_address(self, source: str) -> None:
        with pytest.raises(WeightsError, match="expected hf:owner/name or hf:owner/name@revision"):
            resolve(source)


def test_nobody_reads_half_a_hash(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, write_text, seen = tmp_path / "w.pth", Path.write_text, []

    def watched(self: Path, text: str, **arguments: str) -> int:
        count = write_text(self, text, **arguments)
        if len(text.strip()) == 64:
            seen.append(self.name)
            assert not path.with_name("w.pth.sha256").exists(), "it is there before it is whole"
        return count

    monkeypatch.setattr(Path, "write_text", watched)
    fetch(server.url, path)
    assert len(seen) == 1 and names(tmp_path) == {"w.pth", "w.pth.sha256"}


def test_a_lock_keeps_two_processes_apart(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_CHUNK", 1 << 16)
    threads = [threading.Thread(target=fetch, args=(server.url, tmp_path / "w.pth")) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.requests == [""] and (tmp_path / "w.pth").read_bytes() == CONTENT


def test_the_documented_names_are_the_catalog() -> None:
    document = (Path(__file__).parents[1] / "docs" / "weights.md").read_text(encoding="utf-8")
    documented = re.findall(
        r"^\| `(\S+/\S+)` \| (\S*) ?\| (?:in the package|\[(\S+)\]\((\S+)\)) \|$", document, re.MULTILINE
    )
    assert documented == [
        (
            entry.name,
            "" if entry.coco_ap is None else str(entry.coco_ap),
            entry.file if entry.url else "",
            entry.url or "",
        )
        for entry in CATALOG.values()
    ]
