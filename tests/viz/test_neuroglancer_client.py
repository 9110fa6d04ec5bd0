"""A served store in the real viewer in a headless browser."""

import asyncio
import base64
import io
import json
import os
import shutil
import subprocess
import threading
import urllib.parse
from pathlib import Path

import aiohttp
import numpy as np
import pytest

import mrhdata
from mrhdata.viz.neuroglancer import Server
from mrhdata.volume.construct import from_array

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


async def screenshot(command, url, profile, wait_s=20):
    """Return the PNG of a page some seconds after it was opened, through the browser's debugging port."""
    browser = await asyncio.create_subprocess_exec(
        *command, f"--user-data-dir={profile}", "--remote-debugging-port=0", "about:blank", stderr=subprocess.DEVNULL
    )
    try:
        port_file = profile / "DevToolsActivePort"
        for _ in range(300):
            if port_file.exists() and len(port_file.read_text("utf-8").split()) == 2:
                break
            await asyncio.sleep(0.1)
        port = port_file.read_text("utf-8").split()[0]
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json") as answer:
                pages = [t for t in json.loads(await answer.text()) if t["type"] == "page"]
            async with session.ws_connect(pages[0]["webSocketDebuggerUrl"], max_msg_size=0) as socket:

                async def send(number, method, **params):
                    await socket.send_json({"id": number, "method": method, "params": params})
                    while True:
                        answer = await socket.receive_json()
                        if answer.get("id") == number:
                            return answer["result"]

                await send(1, "Page.navigate", url=url)
                await asyncio.sleep(wait_s)
                return base64.b64decode((await send(2, "Page.captureScreenshot", format="png"))["data"])
    finally:
        browser.kill()
        await browser.wait()


@pytest.mark.full
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
@pytest.mark.filterwarnings("ignore")  # of the viewer's own packages
def test_neuroglancer_shows_a_store(tmp_path):
    """The panels show the grey values of the volume: a bright ball in a dark field, not a blank page."""
    from matplotlib.image import imread

    neuroglancer = pytest.importorskip("neuroglancer", reason="pip install neuroglancer")
    z, y, x = np.indices((60, 70, 80))
    ball = (z - 30) ** 2 + (y - 35) ** 2 + (x - 40) ** 2 < 20**2
    values = (1000 + 3000 * ball + np.random.default_rng(0).integers(0, 200, ball.shape)).astype(np.uint16)
    mrhdata.write(from_array(values, spacing=(0.05, 0.05, 0.05)), tmp_path / "ball.zarr")

    viewer = neuroglancer.Viewer()
    url = urllib.parse.urlsplit(viewer.get_viewer_url())
    with Server({"ball": tmp_path / "ball.zarr"}, viewer=f"{url.scheme}://{url.netloc}") as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        viewer.set_state(json.loads(urllib.parse.unquote(server.link().partition("#!")[2])))
        flags = "--headless --no-sandbox --disable-quic --no-first-run --disable-background-networking --disable-sync"
        flags += " --disable-component-update --use-angle=swiftshader --enable-unsafe-swiftshader --window-size=900,700"
        content = asyncio.run(screenshot([CHROMIUM, *flags.split()], url.geturl(), tmp_path / "profile"))
        server.shutdown()
        neuroglancer.stop()
    if os.environ.get("MRHDATA_KEEP_SHOT"):
        Path(os.environ["MRHDATA_KEEP_SHOT"]).write_bytes(content)
    grey = imread(io.BytesIO(content))[..., :3]
    # The panel at the lower left shows the section in space: a white ball in a black box on grey.
    panel = grey[grey.shape[0] // 2 + 40 :, : grey.shape[1] // 2]
    neutral = np.ptp(panel, axis=-1) < 0.02
    bright, dark = (neutral & (panel[..., 0] > 0.9)).mean(), (neutral & (panel[..., 0] < 0.15)).mean()
    assert 0.02 < bright < 0.2
    assert 0.05 < dark < 0.5
