"""`lit-mnist data fetch`, `verify` and `where`, against a local HTTP server."""

import dataclasses
import gzip
import hashlib
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

from lit_mnist.cli import main
from lit_mnist.data.datasets import DOWNLOADS, FOUR_FILES, KMNIST
from lit_mnist.data.download import fetch, verify, where
from lit_mnist.data.mini import load_mini, mini_path
from lit_mnist.errors import UserError

FILES = FOUR_FILES
IMAGES = gzip.compress(load_mini()[0].tobytes(), 1)


class Mirror(ThreadingHTTPServer):
    """Serves `bodies` by name, without their last `cut` bytes, as soon as `gate` is set; records the requests."""

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
def gzipped_files(full_data: str) -> dict[str, bytes]:
    """MNIST's four files, compressed, by name."""
    return {name: gzip.compress(Path(full_data, "MNIST/raw", name).read_bytes(), 1) for name in FILES}


def files_in(root: Path) -> set[str]:
    """The names of all files below `root` except that of the lock."""
    return {path.name for path in root.rglob("*") if path.name != ".fetch.lock"}


@pytest.mark.parametrize(
    ("body", "cut", "message"),
    [
        (IMAGES, 0, "wrong content: SHA-256 is "),
        (IMAGES, 1000, "ended before the end-of-stream marker"),
        (b"<html>a login page</html>", 0, "Not a gzipped file"),
        (gzip.compress(bytes(60_000_000), 1), 0, "unpacks to more than 47,040,016 bytes"),
        (None, 0, "HTTP Error 404"),
    ],
)
def test_a_bad_download_is_a_one_line_error_and_leaves_no_file(
    tmp_path: Path, mirror: Mirror, body: bytes | None, cut: int, message: str
) -> None:
    mirror.bodies, mirror.cut = ({FILES[0]: body} if body else {}), cut
    with pytest.raises(UserError, match=message) as caught:
        fetch(["MNIST"], tmp_path, mirror.url)
    assert str(caught.value).startswith(f"cannot fetch MNIST/{FILES[0]}: {mirror.url}{FILES[0]}.gz: ")
    assert "\n" not in str(caught.value)
    assert files_in(tmp_path) == set()


@pytest.mark.parametrize("address", ["http://127.0.0.1:9", "nonsense", "http://a b"])
def test_an_unreachable_mirror_is_a_one_line_error(tmp_path: Path, address: str) -> None:
    with pytest.raises(UserError, match=f"cannot fetch MNIST/{FILES[0]}: {address}/"):
        fetch(["MNIST"], tmp_path, address)
    assert files_in(tmp_path) == set()


def test_a_full_disk_is_a_one_line_error_and_leaves_no_file(tmp_path: Path, mirror: Mirror) -> None:
    mirror.bodies = {FILES[0]: IMAGES}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(UserError, match=f"cannot store MNIST in {tmp_path}: .*File too large"):
            fetch(["MNIST"], tmp_path, mirror.url)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert files_in(tmp_path) == set()


def test_a_root_that_cannot_be_created_is_a_one_line_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=f"cannot store MNIST in {tmp_path}/file/sets: .*Not a directory"):
        fetch(["MNIST"], tmp_path / "file" / "sets")


def test_only_missing_and_damaged_files_are_downloaded(
    tmp_path: Path, mirror: Mirror, gzipped_files: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    mirror.bodies = gzipped_files
    fetch(["MNIST"], tmp_path, mirror.url)
    assert mirror.requests == list(FILES)
    verify(["MNIST"], str(tmp_path))
    raw = tmp_path / "MNIST" / "raw"
    os.truncate(raw / FILES[1], 50_000)
    (raw / FILES[3]).rename(raw / "spare")
    (raw / f"{FILES[3]}.gz").write_bytes(gzipped_files[FILES[3]])
    capsys.readouterr()
    with pytest.raises(UserError, match=rf"no known checksum \(1\): MNIST/{FILES[1]}"):
        verify(["MNIST", "FashionMNIST"], str(tmp_path))
    assert capsys.readouterr().out.count(": ok\n") == 3
    fetch(["MNIST"], tmp_path, mirror.url)
    assert mirror.requests == [*FILES, FILES[1]]
    assert (raw / FILES[1]).read_bytes() == gzip.decompress(gzipped_files[FILES[1]])
    assert not list(raw.glob(".*"))


def test_two_concurrent_fetches_download_each_file_once(
    tmp_path: Path, mirror: Mirror, gzipped_files: dict[str, bytes]
) -> None:
    mirror.bodies = gzipped_files
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


def test_a_mirror_needs_one_dataset_and_the_root_may_begin_with_a_tilde(
    tmp_path: Path,
    mirror: Mirror,
    gzipped_files: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    mirror.bodies = gzipped_files
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for which in ((), ("--dataset", "all")):
        assert main(["data", "fetch", *which, "--mirror", mirror.url]) == 2
        assert "say which with --dataset" in capsys.readouterr().err
    assert not mirror.requests
    assert main(["data", "fetch", "--dataset", "MNIST", "--root", "~/here", "--mirror", mirror.url]) == 0
    assert (tmp_path / "here" / "MNIST" / "raw" / FILES[0]).is_file() and not (tmp_path / "~").exists()


def test_a_dataset_with_checksums_of_gz_files_is_stored_as_gz_files(
    tmp_path: Path, mirror: Mirror, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bodies = {name: gzip.compress(name.encode()) for name in FILES}
    mirror.bodies = bodies
    checksums = {f"{name}.gz": hashlib.sha256(body).hexdigest() for name, body in bodies.items()}
    monkeypatch.setitem(DOWNLOADS, "KMNIST", dataclasses.replace(KMNIST, checksums=checksums))
    raw = tmp_path / "KMNIST" / "raw"
    assert main(["data", "fetch", "--dataset", "KMNIST", "--root", str(tmp_path), "--mirror", mirror.url]) == 0
    assert {path.name: path.read_bytes() for path in raw.iterdir()} == {f"{n}.gz": b for n, b in bodies.items()}
    assert main(["data", "verify", "--root", str(tmp_path)]) == 0
    # torchvision leaves the unpacked file beside the .gz file, and the unpacked one is read.
    (raw / FILES[0]).write_bytes(FILES[0].encode())
    verify(["KMNIST"], str(tmp_path))
    (raw / FILES[0]).write_bytes(b"damaged")
    (raw / f"{FILES[1]}.gz").unlink()
    (raw / FILES[1]).write_bytes(FILES[1].encode())
    capsys.readouterr()
    with pytest.raises(UserError, match=r"no known checksum \(2\)"):
        verify(["KMNIST"], str(tmp_path))
    printed = capsys.readouterr().out
    assert f"wrong content: differs from {FILES[0]}.gz" in printed
    assert f"{FILES[1]}.gz, whose checksum is published, is missing" in printed
    fetch(["KMNIST"], tmp_path, mirror.url)
    assert mirror.requests == [*FILES, *FILES[:2]]
    verify(["KMNIST"], str(tmp_path))
    mirror.bodies = {name: gzip.compress(b"other") for name in FILES}
    with pytest.raises(UserError, match=r"wrong content: SHA-256 is \w+, must be"):
        fetch(["KMNIST"], tmp_path / "new", mirror.url)


def test_verify_refuses_the_files_of_another_dataset(tmp_path: Path, full_data: str) -> None:
    shutil.copytree(Path(full_data, "FashionMNIST"), tmp_path / "MNIST")
    with pytest.raises(UserError, match=r"no known checksum \(4\)"):
        verify(["MNIST"], str(tmp_path))


def test_verifying_a_dataset_that_is_not_found_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match="nothing to verify: MNIST not found"):
        verify(["MNIST"], str(tmp_path))
    assert "lit-mnist data fetch" in capsys.readouterr().out


def test_where_prints_the_folder_and_how_it_was_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    where(str(tmp_path))
    mnist, fashion, kmnist, mini = capsys.readouterr().out.splitlines()
    assert mnist == f"MNIST: {raw} (--data.root)"
    assert fashion.startswith("FashionMNIST not found: ")
    assert kmnist.startswith("KMNIST not found: ")
    assert str(mini_path()) in mini
