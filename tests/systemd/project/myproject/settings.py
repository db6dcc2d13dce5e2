"""A project on a server: the database and its password come from the unit's EnvironmentFile."""

import os

SECRET_KEY = os.environ.get("SECRET_KEY", "for the commands of the tests")
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": "/var/lib/dbtasks-supervisor/db.sqlite3",
        "PASSWORD": os.environ.get("DATABASE_PASSWORD", ""),
        "OPTIONS": {
            "transaction_mode": "IMMEDIATE",
            "timeout": 20,
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
        },
    }
}
TASKS = {
    "default": {
        "BACKEND": "dbtasks.backend.DatabaseBackend",
        "QUEUES": [],
        "OPTIONS": {"heartbeat": 1, "worker_timeout": 4},
    }
}
INSTALLED_APPS = ["django.contrib.contenttypes", "dbtasks"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
