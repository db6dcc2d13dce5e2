"""Django's settings for a peer: BENCH_PEER names it, the rest is what its documentation says."""

import json
import os

from tests.settings import DEFAULT_AUTO_FIELD as DEFAULT_AUTO_FIELD
from tests.settings import SECRET_KEY as SECRET_KEY
from tests.settings import USE_TZ as USE_TZ
from tests.settings import database_from_url

# Kept open: by default Django's connections end with each task that some of these run.
CONNECTION = {"CONN_MAX_AGE": None}
DATABASES = {"default": database_from_url(os.environ["DBTASKS_TEST_DATABASE_URL"]) | CONNECTION}

APPS = {
    "dj-queue": "dj_queue",
    "django-tasks-db": "django_tasks_db",
    "procrastinate": "procrastinate.contrib.django",
}
BACKENDS = {
    "dj-queue": "dj_queue.backend.DjQueueBackend",
    "django-tasks-db": "django_tasks_db.DatabaseBackend",
}
PEER = os.environ["BENCH_PEER"]

INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.auth", APPS[PEER]]
if PEER in BACKENDS:
    OPTIONS = json.loads(os.environ.get("BENCH_PEER_OPTIONS", "{}"))
    TASKS = {"default": {"BACKEND": BACKENDS[PEER], "QUEUES": [], "OPTIONS": OPTIONS}}
PROCRASTINATE_IMPORT_PATHS = ["tests.bench.peers.procrastinate_tasks"]
