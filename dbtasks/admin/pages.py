"""The addresses of our pages, which keep the backend that was chosen."""

from __future__ import annotations

import uuid
from urllib.parse import urlencode

from django.urls import reverse

from ..backend import DatabaseBackend
from .choice import backends


class Pages:
    """Addresses within the admin site of that name, about one backend."""

    def __init__(self, site: str, backend: DatabaseBackend) -> None:
        self.site = site
        known = backends()
        default = next((each for each in known if each.alias == "default"), known[0])
        self.kept = {} if backend is default else {"backend": backend.alias}
        self.others = [each.alias for each in known]
        self.alias = backend.alias

    def to(self, name: str, *args: object, **query: object) -> str:
        """The page dbtasks_`name` with a query; what is empty is left out."""
        path = reverse(f"admin:dbtasks_{name}", args=args, current_app=self.site)
        parts = {**self.kept, **{key: value for key, value in query.items() if value}}
        return f"{path}?{urlencode(parts)}" if parts else path

    def dashboard(self) -> str:
        return self.to("dashboard")

    def live(self) -> str:
        return self.to("live")

    def tasks(self, **query: object) -> str:
        return self.to("scheduledtask_changelist", **query)

    def task(self, id: uuid.UUID) -> str:
        return self.to("scheduledtask_change", id)

    def operate(self, name: str, **query: object) -> str:
        return self.to("operate", name, **query)

    def switch(self, name: str, **query: object) -> str:
        """The page that pauses or resumes a queue or a task."""
        return self.to("switch", name, **query)

    def periodic(self, name: str, entry: str) -> str:
        return self.to("periodic", name, entry=entry)

    def choices(self, page: str) -> list[tuple[str, str, bool]]:
        """(alias, address, whether chosen) of each backend, for a page without arguments."""
        path = reverse(f"admin:dbtasks_{page}", current_app=self.site)
        return [
            (alias, f"{path}?{urlencode({'backend': alias})}", alias == self.alias)
            for alias in self.others
        ]
