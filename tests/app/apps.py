"""The app of the tests."""

import os

from django.apps import AppConfig


class TestAppConfig(AppConfig):
    name = "tests.app"
    label = "app"

    def ready(self) -> None:
        if path := os.environ.get("DBTASKS_TEST_SIGNALS"):
            from .receivers import connect

            connect(path, os.environ.get("DBTASKS_TEST_RECEIVER", ""))
