"""Django's admin for tests in this process: the settings of the tests have none."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from typing import Any

from django.apps import apps
from django.core.management import call_command
from django.test import Client, modify_settings, override_settings
from django.test.utils import setup_test_environment, teardown_test_environment

APPS = [
    "django.contrib.admin",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]
LIST = "/admin/dbtasks/scheduledtask/"
DASHBOARD = f"{LIST}dashboard/"
LIVE = f"{LIST}dashboard/live/"
EVERY_OPERATION = {
    "retry": "retry_scheduledtask",
    "run": "run_scheduledtask",
    "cancel": "cancel_scheduledtask",
    "priority": "prioritize_scheduledtask",
    "queue": "move_scheduledtask",
    "delete": "delete_scheduledtask",
}
EVIL = "<script>alert('1')</script>\"'><img src=x onerror=alert(2)>"


@contextmanager
def admin_site() -> Iterator[None]:
    """An admin at /admin/ with its tables, in this session's database."""
    with (
        modify_settings(INSTALLED_APPS={"append": APPS}),
        override_settings(
            ROOT_URLCONF="tests.app.urls",
            MIDDLEWARE=MIDDLEWARE,
            TEMPLATES=TEMPLATES,
            STATIC_URL="/static/",
            ALLOWED_HOSTS=["testserver", "127.0.0.1", "localhost"],
            PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],
        ),
    ):
        for module in ("tables", "tasks"):  # perhaps imported already, while there was no admin
            importlib.import_module(f"dbtasks.admin.{module}")
        for label in ("sessions", "admin"):
            call_command("migrate", label, verbosity=0, interactive=False)
        setup_test_environment()  # responses know their contexts
        try:
            yield
        finally:
            teardown_test_environment()


def forget_people() -> None:
    """Users, their sessions and what they did."""
    for label, model in (("admin", "LogEntry"), ("sessions", "Session"), ("auth", "User")):
        apps.get_model(label, model).objects.all().delete()


def person(name: str, *permissions: str, superuser: bool = False) -> Any:
    """A member of staff who may do just that, `view_scheduledtask` for instance."""
    from django.contrib.auth.models import Permission, User

    user = User.objects.create(username=name, is_staff=True, is_superuser=superuser)
    user.set_password(name)
    user.save()
    wanted = Permission.objects.filter(codename__in=permissions, content_type__app_label="dbtasks")
    assert len(wanted) == len(permissions), permissions
    user.user_permissions.set(wanted)
    return user


def browser_of(user: Any, **options: Any) -> Client:
    client = Client(**options)
    client.force_login(user)
    return client


def log_of_actions() -> list[tuple[str, str, str]]:
    """(object id, name, message) of every entry in Django's admin log, oldest first."""
    entries = apps.get_model("admin", "LogEntry").objects.order_by("pk")
    return [(entry.object_id, entry.object_repr, entry.change_message) for entry in entries]


class Suspect(HTMLParser):
    """Collects what no page of ours has: scripts and styles within it, handlers, images."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag if tag in ("script", "style") else ""
        if tag in ("img", "iframe", "object"):
            self.found.append(tag)
        for name, value in attrs:
            if name.startswith("on") or name == "style":
                self.found.append(f"{tag} {name}")
            if (value or "").strip().lower().startswith("javascript:"):
                self.found.append(f"{tag} {name}={value}")

    def handle_data(self, data: str) -> None:
        if self._inside and data.strip():
            self.found.append(f"{self._inside}: {data[:100]}")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""


def assert_escaped(response: Any, where: str, text: str = "") -> None:
    """Nothing in the page is code, whatever its rows say."""
    suspect = Suspect()
    suspect.feed(text or response.content.decode())
    assert suspect.found == [], where
