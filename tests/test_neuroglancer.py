"""A written store, served, in the real viewer in a headless browser."""

import functools
import http.server
import importlib.util
import os
import shutil
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest

import mrhdata
from mrhdata.serving import Server
from mrhdata.volume import from_array

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def viewer():
    """Folder of neuroglancer's pages: of the installed package, or named by MRHDATA_NEUROGLANCER."""
    named = os.environ.get("MRHDATA_NEUROGLANCER")
    spec = importlib.util.find_spec("neuroglancer")
    found = Path(named) if named else Path(spec.origin).parent / "static" / "client" if spec and spec.origin else None
    return found if found is not None and (found / "index.html").is_file() else None


@pytest.mark.full
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
@pytest.mark.skipif(viewer() is None, reason="neuroglancer is not installed (pip install neuroglancer)")
def test_neuroglancer_shows_a_store(tmp_path):
    """The panels show the volume's grey values: a bright ball in a dark field, not a blank page."""
    from matplotlib.image import imread

    z, y, x = np.indices((60, 70, 80))
    ball = (z - 30) ** 2 + (y - 35) ** 2 + (x - 40) ** 2 < 20**2
    values = (1000 + 3000 * ball + np.random.default_rng(0).integers(0, 200, ball.shape)).astype(np.uint16)
    mrhdata.write(from_array(values, spacing=(0.05, 0.05, 0.05)), tmp_path / "ball.zarr")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    pages = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=viewer()))
    origin = f"http://127.0.0.1:{pages.server_port}"
    with pages, Server({"ball": tmp_path / "ball.zarr"}, viewer=origin) as server:
        for running in (pages, server):
            threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
        flags = "--headless --no-sandbox --disable-quic --no-first-run --disable-background-networking --disable-sync"
        flags += " --disable-component-update --use-angle=swiftshader --enable-unsafe-swiftshader --window-size=900,700"
        command = [CHROMIUM, *flags.split(), f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=20000"]
        shot = tmp_path / "shot.png"
        subprocess.run([*command, f"--screenshot={shot}", server.link()], check=True, capture_output=True, timeout=180)
        server.shutdown()
        pages.shutdown()
    grey = imread(shot)[..., :3]
    neutral = np.ptp(grey, axis=-1) < 0.02
    bright, dark = (neutral & (grey[..., 0] > 0.8)).mean(), (neutral & (grey[..., 0] < 0.35)).mean()
    assert bright > 0.05
    assert dark > 0.2
    kept = os.environ.get("MRHDATA_KEEP_SHOT")
    if kept:
        shutil.copy(shot, kept)
