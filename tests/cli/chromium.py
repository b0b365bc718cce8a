"""A headless Chromium that is told what to do over a pipe, in Chrome's DevTools protocol."""

import base64
import json
import os
import shutil
import subprocess
import time

import pytest

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser")

# All that a page shows, also inside the shadow trees that TensorBoard is built of.
_WALK = """
(() => {
  const found = [];
  const walk = (node) => {
    found.push(node);
    if (node.shadowRoot) walk(node.shadowRoot);
    node.childNodes.forEach(walk);
  };
  walk(document);
  return found;
})()
"""
_TEXT = f"""
{_WALK}
  .filter((n) => n.nodeType === Node.TEXT_NODE && n.data.trim()
    && !["STYLE", "SCRIPT", "NOSCRIPT"].includes(n.parentNode.nodeName))
  .map((n) => n.data.trim()).join("\\n")
"""
_SLIDERS = f'{_WALK}.filter((n) => n.nodeName === "PAPER-SLIDER").map((n) => n.max)'
_PICTURES = f"""
{_WALK}
  .filter((n) => n.nodeName === "IMG" && n.complete && n.naturalWidth > 0)
  .map((n) => [n.naturalWidth, n.naturalHeight])
"""


class Chromium:
    """A page of it.

    Args:
        profile: a new folder.
        size: width and height of the window, pixels.
    """

    def __init__(self, profile, *, size=(1600, 1200)):
        to_read, self._to_write = os.pipe()
        self._from_read, from_write = os.pipe()
        words = [
            *(PROGRAM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
            *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
            *("--disable-sync", "--disable-dev-shm-usage", "--remote-debugging-pipe"),
            *(f"--user-data-dir={profile}", f"--window-size={size[0]},{size[1]}", "about:blank"),
        ]
        # It reads from file 3 and writes to file 4.
        wire = f'exec "$0" "$@" 3<&{to_read} 4>&{from_write}'
        self._process = subprocess.Popen(
            ["bash", "-c", wire, *words],
            pass_fds=(to_read, from_write),
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(from_write)
        self._number, self._rest, self._session = 0, b"", None
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        attached = self.ask("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]

    def ask(self, method, **parameters):
        """Send a command, and give its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._to_write, json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != self._number:
            pass  # an event, which nobody waits for
        assert "error" not in answer, answer
        return answer["result"]

    def _read(self):
        while b"\0" not in self._rest:
            part = os.read(self._from_read, 1 << 20)
            assert part, "chromium has gone"
            self._rest += part
        line, _, self._rest = self._rest.partition(b"\0")
        return json.loads(line)

    def open(self, url):
        self.ask("Page.navigate", url=url)

    def text(self):
        """The page's text, a line a piece."""
        return self._value(_TEXT)

    def pictures(self):
        """Width and height of each picture that has been loaded."""
        return self._value(_PICTURES)

    def sliders(self):
        """The last place of each slider, from 0."""
        return self._value(_SLIDERS)

    def _value(self, script):
        result = self.ask("Runtime.evaluate", expression=script, returnByValue=True)
        return result["result"].get("value")

    def wait_for(self, look, timeout=120):
        """What ``look()`` gives, as soon as that is not nothing."""
        end = time.monotonic() + timeout
        while not (found := look()):
            assert time.monotonic() < end, f"not seen within {timeout} s; the page:\n{self.text()}"
            time.sleep(0.3)
        return found

    def save(self, path):
        """Write what is seen as a PNG."""
        path.write_bytes(base64.b64decode(self.ask("Page.captureScreenshot")["data"]))

    def close(self):
        os.close(self._to_write)
        os.close(self._from_read)
        self._process.kill()
        self._process.wait()


def started(profile):
    """A new one, or a skipped test where there is none."""
    if PROGRAM is None:
        pytest.skip("needs chromium: apt-get install chromium")
    return Chromium(profile)
