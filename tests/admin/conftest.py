"""The admin's tests share one site, an empty queue, and somebody who may do everything."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:  # this file is loaded before Django is set up
    from django.test import Client

    from dbtasks.engines import Engine


@pytest.fixture(scope="module")
def site(tables: None) -> Iterator[None]:
    from tests.admin_site import admin_site

    with admin_site():
        yield


@pytest.fixture
def engine(site: None, db: None) -> Iterator[Engine]:
    """Nobody is known before and after."""
    from tests.admin_site import forget_people
    from tests.engines import fresh_engine

    forget_people()
    yield fresh_engine()
    forget_people()


@pytest.fixture
def root(engine: Engine) -> Client:
    from tests.admin_site import browser_of, person

    return browser_of(person("root", superuser=True))
