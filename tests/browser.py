"""Pages, read as text and shown by a browser."""

import base64
import gzip
import json
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

CHROMIUM = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
WITH_WEBGL, WITHOUT_WEBGL = ("--use-angle=swiftshader", "--enable-unsafe-swiftshader"), ("--disable-3d-apis",)

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here to open the page with")


def unpack(spec, text):
    """What the page's script does: base64, gzip, byte planes, differences."""
    dtype = np.dtype(spec["dtype"])
    planes = np.frombuffer(gzip.decompress(base64.b64decode(text)), np.uint8).reshape(dtype.itemsize, -1)
    stored = np.frombuffer(planes.T.tobytes(), dtype).reshape(spec["shape"])
    return np.cumsum(stored, axis=-1, dtype=dtype) if spec["differences"] else stored


class Page(HTMLParser):
    """What is in a page: attributes of all elements, the scripts' texts, and the rest of the text."""

    def __init__(self, text):
        super().__init__()
        self.attributes, self.scripts, self.words, self.script = [], [], "", None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value) for name, value in attrs]
        self.script = dict(attrs) if tag == "script" else None

    def handle_data(self, data):
        if self.script is None:
            self.words += data
        else:
            self.scripts.append((self.script, data))

    def handle_endtag(self, tag):
        self.script = None

    def values(self):
        return json.loads(next(text for script, text in self.scripts if script.get("id") == "values"))

    def arrays(self):
        found = [(json.loads(script["data-array"]), text) for script, text in self.scripts if "data-array" in script]
        return {spec["name"]: unpack(spec, text) for spec, text in found}


def body_after(page: Path, profile: Path, fragment: str = "", *flags: str, milliseconds: int = 5000) -> dict[str, str]:
    """Attributes of the page's body once Chromium has shown it for some time, of its own clock."""
    quiet = ("--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync")
    command = [CHROMIUM, "--headless", "--no-sandbox", *quiet, f"--user-data-dir={profile}", *flags]
    shown = subprocess.run(
        [*command, f"--virtual-time-budget={milliseconds}", "--dump-dom", f"{page.as_uri()}{fragment}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return {name: value for tag, name, value in Page(shown.stdout).attributes if tag == "body"}
