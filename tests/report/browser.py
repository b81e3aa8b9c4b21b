"""A real browser without a window, and the page's own scripts run by it or by node."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import Chrome, ChromeOptions, ChromeService

ASSETS = resources.files("growbench.report").joinpath("assets")
NODE = shutil.which("node")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
MISSING = " and ".join(name for name, path in (("Chromium", BROWSER), ("chromedriver", DRIVER)) if not path)
# JSON has no NaN and no infinity: they travel as text, which float() reads
ANSWER = '(_, value) => (typeof value === "number" && !isFinite(value) ? String(value) : value)'

AXE = Path(__file__).parent / "axe" / "axe-4.14.1.min.js"

PURE = ("estimator.js", "reading.js", "format.js")  # scripts that know no page

Call = Callable[..., Any]


@contextmanager
def opened() -> Iterator[Chrome]:
    """A browser that keeps what its console says. Skips the test, with the reason, where there is none."""
    if not BROWSER or not DRIVER:
        pytest.skip(f"no {MISSING} on this machine")
    options = ChromeOptions()
    options.binary_location = BROWSER
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--force-device-scale-factor=1",
    ):
        options.add_argument(argument)
    driver = Chrome(options, ChromeService(DRIVER, env={**os.environ, "SE_AVOID_STATS": "true"}))
    try:
        yield driver
    finally:
        driver.quit()


def pretend(driver: Chrome, width: int | None = None, scheme: str = "", medium: str = "") -> None:
    """Let pages see a window of this many pixels (below 600 a phone's; None: its own), a colour scheme and a medium."""
    if width is None:
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    else:
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": scheme}] if scheme else []
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": medium, "features": features})


def hindrances(driver: Chrome, within: str = "html") -> str:
    """What axe-core finds serious or critical in parts of the open page, all of it unfolded, as JSON; "[]": nothing."""
    driver.execute_script("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    driver.execute_script(AXE.read_text(encoding="utf-8"))
    found = driver.execute_async_script("axe.run(arguments[0]).then((found) => arguments[1](found.violations))", within)
    serious = [each for each in found if each["impact"] in ("serious", "critical")]
    return json.dumps([(each["id"], [node["html"][:300] for node in each["nodes"]][:5]) for each in serious], indent=1)


def call(driver: Callable[[], Chrome], function: str, *given: Any) -> Any:
    """What a function in terms of the scripts that know no page, written out here, gives for these arguments, of JSON's types."""
    scripts = "\n".join(ASSETS.joinpath(name).read_text(encoding="utf-8") for name in PURE)
    read = "require('fs').readFileSync(0, 'utf8')" if NODE else "arguments[0]"
    code = f"{scripts}\nconst answer = JSON.stringify(({function})(...JSON.parse({read})), {ANSWER});\n"
    text = json.dumps(given, allow_nan=False)
    if not NODE:
        return json.loads(driver().execute_script(f"{code}return answer;", text))
    done = subprocess.run([NODE, "-e", f"{code}process.stdout.write(answer);"], input=text, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return json.loads(done.stdout)
