"""The service as a second process, under load; and its page in a browser."""

from __future__ import annotations

import asyncio
import base64
import http.client
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

import torchswat
from torchswat.deploy.predict import predict

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response

from torchswat.deploy.service import Limits, _Service


@contextmanager
def serving(model: Path | str, *options: object) -> Iterator[str]:
    """Run `torchswat serve` in a process of its own, and give its host and port."""
    command = [sys.executable, "-m", "torchswat", "serve", str(model), "--port", "0", *map(str, options)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line.startswith("Listening on http://127.0.0.1:"), line
        yield urlsplit(line.split()[-1]).netloc
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=20)
        if "Traceback" in errors:
            pytest.fail(errors[-3000:])
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def address(model: Path) -> Iterator[str]:
    with serving(model, "--max-bytes", 50_000, "--threads", 1) as where:
        yield where


def ask(address: str, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    """Return status and content (of JSON its values) of one request."""
    connection = http.client.HTTPConnection(address, timeout=30)
    try:
        with suppress(BrokenPipeError):  # refused before all was sent: the answer is there
            connection.request(method, path, body, headers)
        answer = connection.getresponse()
        content = answer.read()
        is_json = answer.headers.get_content_type() == "application/json"
        return answer.status, json.loads(content) if is_json else content.decode()
    finally:
        connection.close()


def counter(address: str, name: str) -> float:
    lines = ask(address, "GET", "/metrics")[1].splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


def test_a_picture(address: str, model: Path, pictures: list[Path]):
    ((_, expected),) = predict(torchswat.load(model), pictures[:1], top=3)
    status, found = ask(address, "POST", "/predict?top=3", pictures[0].read_bytes())
    assert status == 200 and found["milliseconds"] > 0
    assert isinstance(expected, list)
    for mine, theirs in zip(found["guesses"], expected, strict=True):
        assert mine["name"] == theirs.name
        assert mine["probability"] == pytest.approx(theirs.probability, rel=1e-4)


def test_health(address: str):
    status, found = ask(address, "GET", "/health")
    assert status == 200 and found["status"] == "ok"
    assert found["input_shape"] == [1, 8, 8] and found["limits"]["bytes"] == 50_000


def test_none_is_lost_under_load(address: str, model: Path, pictures: list[Path]):
    """Eight clients at once: every answer is there, is right, and went to the one who asked."""
    guesses = predict(torchswat.load(model), pictures, top=1)
    expected = {file: found[0].name for file, found in guesses if isinstance(found, list)}
    before = counter(address, 'torchswat_requests_total{model="network",status="200"}')

    def client(number: int) -> list[tuple[Path, int, Any]]:
        files = [pictures[(number + turn) % len(pictures)] for turn in range(40)]
        return [(file, *ask(address, "POST", "/predict?top=1", file.read_bytes())) for file in files]

    with ThreadPoolExecutor(8) as pool:
        answers = [answer for some in pool.map(client, range(8)) for answer in some]
    assert len(answers) == 320 and all(status == 200 for _, status, _ in answers)
    assert all(found["guesses"][0]["name"] == expected[file] for file, _, found in answers)
    assert counter(address, 'torchswat_requests_total{model="network",status="200"}') == before + 320
    alone = counter(address, 'torchswat_batch_size_bucket{le="1.0"')
    assert counter(address, "torchswat_batch_size_count") > alone  # some ran together
    assert counter(address, "torchswat_images_queued") == 0


def refused(
    address: str, status: int, words: str, body: Any = b"", path: str = "/predict", **headers: str
) -> None:
    found, answer = ask(address, "POST", path, body, **headers)
    assert found == status and words in answer["error"], answer


def test_what_is_refused(address: str, pictures: list[Path]):
    picture = pictures[0].read_bytes()
    refused(address, 413, "50000 bytes at most", bytes(50_001))
    refused(address, 413, "50000 bytes at most", b"", **{"Content-Length": "900001"})
    refused(address, 413, "50000 bytes at most", iter([bytes(30_000)] * 3))
    refused(address, 400, "empty")
    refused(address, 415, "not a readable image", b"hello")
    refused(address, 415, "not a readable image", picture[: len(picture) // 2])
    refused(
        address, 415, "curl --data-binary", picture, **{"Content-Type": "multipart/form-data; boundary=x"}
    )
    refused(address, 400, "top is", picture, "/predict?top=0")
    refused(address, 400, "top is", picture, "/predict?top=many")
    large = io.BytesIO()
    Image.new("1", (9_000, 9_000)).save(large, "PNG")
    assert len(large.getvalue()) < 50_000
    refused(address, 415, "more than the", large.getvalue())
    assert ask(address, "GET", "/predict")[0] == 405
    assert ask(address, "GET", "/../../etc/passwd")[0] == 404
    assert ask(address, "POST", "/predict", picture)[0] == 200  # and it is still there


def test_clients_that_leave(address: str, pictures: list[Path]):
    host, port = address.split(":")
    for text in (
        b"",
        b"POST /predict HTTP/1.1\r\n",
        b"POST /predict HTTP/1.1\r\nContent-Length: 999\r\n\r\nabc",
    ):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(text)
    assert ask(address, "POST", "/predict", pictures[0].read_bytes())[0] == 200


def test_more_than_there_is_room_for_are_refused(model: Path):
    """Forty clients and room for four: some are told to come back, none waits in vain."""
    noise = np.random.default_rng(0).integers(0, 256, (1500, 1500, 3), np.uint8)
    picture = io.BytesIO()
    Image.fromarray(noise).save(picture, "JPEG", quality=50)
    with serving(model, "--max-waiting", 4, "--max-batch", 1) as address, ThreadPoolExecutor(40) as pool:
        asked = [pool.submit(ask, address, "POST", "/predict", picture.getvalue()) for _ in range(80)]
        statuses = Counter(one.result()[0] for one in asked)
        assert set(statuses) == {200, 503}
        assert ask(address, "POST", "/predict", picture.getvalue())[0] == 200


def test_what_was_taken_is_answered_when_a_signal_ends_it(model: Path, pictures: list[Path]):
    """Eight clients do not cease to ask; every request that the service took is answered, then it ends."""
    answers = Counter[int]()
    with ThreadPoolExecutor(8) as pool, serving(model) as address:

        def client(number: int) -> None:
            host, port = address.split(":")
            while True:
                connection = http.client.HTTPConnection(host, int(port), timeout=30)
                try:
                    connection.connect()
                except OSError:
                    return  # it takes no more
                try:
                    connection.request("POST", "/predict", pictures[number].read_bytes())
                    answers[connection.getresponse().status] += 1
                except http.client.RemoteDisconnected:
                    raise
                except (BrokenPipeError, ConnectionResetError):
                    return  # the system took the connection, the service never did
                finally:
                    connection.close()

        clients = [pool.submit(client, number) for number in range(8)]
        time.sleep(1)
    for each in clients:
        each.result(timeout=20)
    assert set(answers) == {200} and answers[200] > 8


def test_a_network_that_fails_is_answered_for(
    model: Path, pictures: list[Path], caplog: pytest.LogCaptureFixture
):
    network = torchswat.load(model)
    network.probabilities = lambda pictures: 1 / 0  # type: ignore[method-assign]

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": pictures[0].read_bytes(), "more_body": False}

    async def main() -> tuple[Response, str]:
        service = _Service({"digits": network}, Limits())
        scope = {"type": "http", "method": "POST", "headers": [], "query_string": b""}
        async with service.lifespan(Starlette()):
            answer = await service.predict(Request(scope, receive))
        return answer, bytes((await service.scrape(Request(scope, receive))).body).decode()

    answer, metrics = asyncio.run(main())
    assert answer.status_code == 500 and "failed" in json.loads(bytes(answer.body))["error"]
    assert 'requests_total{model="digits",status="500"} 1' in metrics
    assert "ZeroDivisionError" in caplog.text


def test_an_address_that_is_taken(model: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "torchswat", "serve", str(model), "--port", str(port)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert f"cannot listen on 127.0.0.1, port {port}" in done.stderr and "--port" in done.stderr


def test_the_page_is_plain(address: str):
    status, page = ask(address, "GET", "/")
    assert status == 200 and "Drop an image" in page
    assert "http://" not in page and "https://" not in page  # nothing from elsewhere
    assert ask(address, "GET", "/page.js")[0] == ask(address, "GET", "/page.css")[0] == 200


# ---- in a browser ------------------------------------------------------------------------------------------

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Browser:
    """A headless Chromium, driven through a pair of pipes by the DevTools protocol."""

    def __init__(self, profile: Path) -> None:
        to_browser, self.write_end = os.pipe()
        self.read_end, from_browser = os.pipe()
        command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        command += ["--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"]
        # The protocol's pipes are the descriptors 3 and 4.
        script = f'exec 3<&{to_browser} 4>&{from_browser}; exec "$@"'
        self.process = subprocess.Popen(
            ["bash", "-c", script, "bash", *command],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self.waiting, self.number, self.session = b"", 0, {}
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = {"sessionId": attached["sessionId"]}

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters, **self.session}
        os.write(self.write_end, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self.waiting:
                part = os.read(self.read_end, 1 << 16)
                assert part, "the browser ended"
                self.waiting += part
            text, _, self.waiting = self.waiting.partition(b"\0")
            answer = json.loads(text)
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]

    def evaluate(self, expression: str) -> Any:
        """Return what a JavaScript expression, or the promise that it is, comes to."""
        settings = {"returnByValue": True, "awaitPromise": True}
        found = self.call("Runtime.evaluate", expression=expression, **settings)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.write_end)
        os.close(self.read_end)


DROP = """
(async () => {
  const bytes = Uint8Array.from(atob("%s"), (c) => c.charCodeAt(0));
  const data = new DataTransfer();
  data.items.add(new File([bytes], "picture.png", { type: "image/png" }));
  const place = document.getElementById("place");
  place.dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true }));
  const state = document.getElementById("state");
  for (let turn = 0; turn < 200 && !/ms|not a/.test(state.textContent); turn++)
    await new Promise((resolve) => setTimeout(resolve, 50));
  const cells = [...document.querySelectorAll("#guesses tbody tr td:first-child")];
  const names = cells.map((cell) => cell.textContent);
  return [state.textContent, state.className, names, document.getElementById("guesses").hidden];
})()
"""


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium here")
def test_a_picture_dropped_on_the_page(address: str, model: Path, pictures: list[Path], tmp_path: Path):
    ((_, expected),) = predict(torchswat.load(model), pictures[:1], top=5)
    assert isinstance(expected, list)
    browser = Browser(tmp_path / "profile")
    try:
        browser.call("Page.enable")
        browser.call("Page.navigate", url=f"http://{address}/")
        for _ in range(100):
            if browser.evaluate("document.readyState === 'complete' && document.title") == "torchswat":
                break
            time.sleep(0.1)
        good = base64.b64encode(pictures[0].read_bytes()).decode()
        state, _, names, hidden = browser.evaluate(DROP % good)
        assert "ms" in state and not hidden
        assert names == [guess.name for guess in expected]
        browser.evaluate("document.getElementById('state').textContent = ''")
        state, kind, _, hidden = browser.evaluate(DROP % base64.b64encode(b"hello").decode())
        assert "not a readable image" in state and kind == "wrong" and hidden
        assert browser.evaluate("!words.hidden && picture.hidden")  # room for the next
        beside = "new DragEvent('drop', { cancelable: true, bubbles: true })"
        assert browser.evaluate(f"document.body.dispatchEvent({beside})") is False  # opens nothing
    finally:
        browser.close()
