"""A real browser for tests: Chromium without a screen, and a server of this process."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from django.contrib.staticfiles.handlers import StaticFilesHandler
from django.core.servers.basehttp import ThreadedWSGIServer
from django.db import connections
from django.test.testcases import LiveServerThread

LOAD_SECONDS = 60
NEEDED = {"chromium": "chromium", "chromedriver": "chromium-driver"}


def missing_browser() -> str | None:
    """What to install, or None where a browser can be driven."""
    packages = [package for program, package in NEEDED.items() if shutil.which(program) is None]
    if packages:
        return f"NO BROWSER: apt-get install {' '.join(packages)}"
    if importlib.util.find_spec("selenium") is None:
        return "NO BROWSER: selenium is missing, make env installs it"
    return None


class PatientServer(ThreadedWSGIServer):
    """Does not wait for the threads of connections that a browser keeps open."""

    daemon_threads = True
    block_on_close = False


class ServerThread(LiveServerThread):
    server_class = PatientServer


@contextlib.contextmanager
def live_server() -> Iterator[str]:
    """The project of this process at http://127.0.0.1:PORT, its static files too."""
    thread = ServerThread("127.0.0.1", StaticFilesHandler, connections_override={})
    thread.daemon = True
    thread.start()
    thread.is_ready.wait()
    if thread.error:
        raise thread.error
    try:
        yield f"http://127.0.0.1:{thread.port}"
    finally:
        thread.terminate()
        connections.close_all()


@contextlib.contextmanager
def chromium(width: int = 1280, height: int = 900) -> Iterator[Any]:
    """A browser with an empty profile of its own; it asks nobody for updates."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    profile = tempfile.mkdtemp(prefix="dbtasks-browser-")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or "chromium"
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--disable-breakpad",
        "--disable-crash-reporter",
        "--disable-background-networking",
        "--no-first-run",
        "--hide-scrollbars",
        f"--user-data-dir={profile}",
        f"--window-size={width},{height}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = Service(
        shutil.which("chromedriver"), env={**os.environ, "HOME": profile, "TMPDIR": profile}
    )
    driver = webdriver.Chrome(options=options, service=service)
    driver.set_page_load_timeout(LOAD_SECONDS)
    try:
        yield driver
    finally:
        driver.quit()
        shutil.rmtree(Path(profile), ignore_errors=True)


def sign_in(driver: Any, server: str, user: Any) -> None:
    """With a session that the server knows, without the form."""
    from django.test import Client

    client = Client()
    client.force_login(user)
    driver.get(f"{server}/admin/login/")
    driver.add_cookie({"name": "sessionid", "value": client.cookies["sessionid"].value})


def complaints(driver: Any) -> list[str]:
    """What the browser's console says is wrong."""
    return [
        entry["message"]
        for entry in driver.get_log("browser")
        if entry["level"] == "SEVERE" and "favicon" not in entry["message"]
    ]
