"""The Django app."""

from __future__ import annotations

from django.apps import AppConfig


class DbtasksConfig(AppConfig):
    name = "dbtasks"
    verbose_name = "Tasks"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from . import checks  # noqa: F401  (registers the system checks)
