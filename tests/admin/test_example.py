"""The admin pages of a project that has django.contrib.admin: they open, and escape what they show.

In a process of its own, since the settings of the tests have no admin.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.once

EXAMPLE = Path(__file__).resolve().parents[2] / "deploy" / "example"
SCRIPT = """
import django; django.setup()
from django.conf import settings
settings.ALLOWED_HOSTS = ["testserver"]
from django.contrib.auth.models import User
from django.core.management import call_command
from django.test import Client
from django.utils import timezone
from dbtasks.models import Node, PeriodicTask, ScheduledTask, Worker, Occurrence
call_command("migrate", verbosity=0)
now = timezone.now()
evil = "<script>alert(1)</script>"
row = ScheduledTask.objects.create(
    task_path=evil, args=[evil], kwargs={"k": evil}, backend="default", queue=evil,
    enqueued_at=now, status="FAILED",
    errors=[{"exception_class_path": "ValueError", "traceback": evil}], return_value=evil,
)
node = Node.objects.create(
    id="n", name=evil, host=evil, pid=1, kind="supervisor", backend="default",
    started_at=now, last_seen=now, expires_at=now,
)
Worker.objects.create(id=evil, node=node, kind="worker", pid=2, state="idle", last_seen=now)
PeriodicTask.objects.create(
    backend="default", name=evil, task_path=evil, spec=evil, since=now, deployed_at=now
)
Occurrence.objects.create(
    backend="default", name=evil, due_at=now, task_id=row.id, enqueued_at=now, enqueued_by=evil
)
User.objects.create_superuser("root", "", "root")
client = Client()
client.login(username="root", password="root")
pages = ["scheduledtask", "node", "worker", "periodictask", "occurrence", f"scheduledtask/{row.id}"]
for page in pages:
    response = client.get(f"/admin/dbtasks/{page}/", follow=True)
    text = response.content.decode()
    assert response.status_code == 200, (page, response.status_code)
    assert evil not in text, page
    assert "&lt;script&gt;" in text, page
assert client.post(f"/admin/dbtasks/scheduledtask/{row.id}/change/", {}).status_code == 403
assert client.get("/admin/dbtasks/scheduledtask/add/").status_code == 403
"""


def test_every_page_opens_read_only_and_escapes_hostile_text(tmp_path: Path) -> None:
    environ = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "example.settings",
        "EXAMPLE_DATABASE_URL": f"sqlite:///{tmp_path / 'admin.sqlite3'}",
        "PYTHONPATH": os.pathsep.join([str(EXAMPLE), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environ, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
