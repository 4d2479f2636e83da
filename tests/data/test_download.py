import gzip
import os
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from lit_mnist.data.download import fetch, verify, where
from lit_mnist.data.idx import FILES
from lit_mnist.data.mini import load_mini, mini_path
from lit_mnist.errors import UserError

IMAGES = gzip.compress(load_mini()[0].tobytes(), 1)


class Mirror(ThreadingHTTPServer):
    """Serves `bodies` by name, short of their last `cut` bytes, once `gate` is open; counts requests."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.bodies: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.cut = 0
        self.gate = threading.Event()
        self.gate.set()
        self.url = f"http://127.0.0.1:{self.server_port}/sets/"


class _Handler(BaseHTTPRequestHandler):
    server: Mirror

    def do_GET(self) -> None:
        name = self.path.removeprefix("/sets/").removesuffix(".gz")
        self.server.requests.append(name)
        self.server.gate.wait()
        if name not in self.server.bodies:
            self.send_error(404)
            return
        body = self.server.bodies[name]
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) - self.server.cut])

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Mirror() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def packed(full_data: str) -> dict[str, bytes]:
    return {name: gzip.compress(Path(full_data, "MNIST/raw", name).read_bytes(), 1) for name in FILES}


def files_in(root: Path) -> set[str]:
    return {path.name for path in root.rglob("*") if path.name != ".fetch.lock"}


@pytest.mark.parametrize(
    ("body", "cut", "message"),
    [
        (IMAGES, 0, "wrong content: SHA-256 is "),
        (IMAGES, 1000, "ended before the end-of-stream marker"),
        (b"<html>a portal's login page</html>", 0, "Not a gzipped file"),
        (gzip.compress(bytes(60_000_000), 1), 0, "unpacks to more than 47,040,016 bytes"),
        (None, 0, "HTTP Error 404"),
    ],
)
def test_a_bad_answer_is_one_line_and_leaves_nothing(
    tmp_path: Path, mirror: Mirror, body: bytes | None, cut: int, message: str
) -> None:
    mirror.bodies, mirror.cut = ({FILES[0]: body} if body else {}), cut
    with pytest.raises(UserError, match=message) as caught:
        fetch(["MNIST"], tmp_path, mirror.url)
    assert str(caught.value).startswith(f"cannot fetch MNIST/{FILES[0]}: {mirror.url}{FILES[0]}.gz: ")
    assert "\n" not in str(caught.value)
    assert files_in(tmp_path) == set()


@pytest.mark.parametrize("address", ["http://127.0.0.1:9", "nonsense", "http://a b"])
def test_a_mirror_that_is_not_there_is_one_line(tmp_path: Path, address: str) -> None:
    with pytest.raises(UserError, match=f"cannot fetch MNIST/{FILES[0]}: {address}/"):
        fetch(["MNIST"], tmp_path, address)
    assert files_in(tmp_path) == set()


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, mirror: Mirror) -> None:
    mirror.bodies = {FILES[0]: IMAGES}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(UserError, match=f"cannot store MNIST in {tmp_path}: .*File too large"):
            fetch(["MNIST"], tmp_path, mirror.url)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert files_in(tmp_path) == set()


def test_a_root_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=f"cannot store MNIST in {tmp_path}/file/sets: .*Not a directory"):
        fetch(["MNIST"], tmp_path / "file" / "sets")


def test_only_what_is_missing_or_broken_is_downloaded(
    tmp_path: Path, mirror: Mirror, packed: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    mirror.bodies = packed
    fetch(["MNIST"], tmp_path, mirror.url)
    assert mirror.requests == list(FILES)
    verify(["MNIST"], str(tmp_path))
    raw = tmp_path / "MNIST" / "raw"
    os.truncate(raw / FILES[1], 50_000)
    (raw / FILES[3]).rename(raw / "spare")
    (raw / f"{FILES[3]}.gz").write_bytes(packed[FILES[3]])
    capsys.readouterr()
    with pytest.raises(UserError, match=f"1 files are wrong or missing: MNIST/{FILES[1]}"):
        verify(["MNIST", "FashionMNIST"], str(tmp_path))
    assert capsys.readouterr().out.count(": ok\n") == 3
    fetch(["MNIST"], tmp_path, mirror.url)
    assert mirror.requests == [*FILES, FILES[1]]
    assert (raw / FILES[1]).read_bytes() == gzip.decompress(packed[FILES[1]])
    assert not list(raw.glob(".*"))


def test_two_fetches_at_once_download_each_file_once(
    tmp_path: Path, mirror: Mirror, packed: dict[str, bytes]
) -> None:
    mirror.bodies = packed
    mirror.gate.clear()
    code = (
        "import pathlib, sys; from lit_mnist.data.download import fetch; print('ready', flush=True);"
        "fetch(['MNIST'], pathlib.Path(sys.argv[1]), sys.argv[2])"
    )
    command = [sys.executable, "-c", code, str(tmp_path), mirror.url]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    mirror.gate.set()
    printed = [worker.communicate()[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0]
    assert mirror.requests == list(FILES)
    assert sorted(text.count("already here") for text in printed) == [0, 4]
    verify(["MNIST"], str(tmp_path))


def test_a_dataset_under_the_others_name_does_not_verify(tmp_path: Path, full_data: str) -> None:
    shutil.copytree(Path(full_data, "FashionMNIST"), tmp_path / "MNIST")
    with pytest.raises(UserError, match="4 files are wrong or missing"):
        verify(["MNIST"], str(tmp_path))


def test_nothing_to_verify_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="nothing to verify: MNIST not found"):
        verify(["MNIST"], str(tmp_path))
    assert "lit-mnist data fetch" in capsys.readouterr().out


def test_where_names_folder_and_rule(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    where(str(tmp_path))
    mnist, fashion, mini = capsys.readouterr().out.splitlines()
    assert mnist == f"MNIST: {raw} (--data.root)"
    assert fashion.startswith("FashionMNIST not found: ")
    assert str(mini_path()) in mini
