"""`RunnerTestCase` as a project uses it: `manage.py test` in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.once

MANAGE = """
import os, sys
from django.core.management import execute_from_command_line
os.environ["DJANGO_SETTINGS_MODULE"] = "project.settings"
execute_from_command_line(sys.argv)
"""
# What startproject writes, as far as it matters: SQLite, so tests run on a database in memory.
SETTINGS = """
from pathlib import Path
SECRET_KEY = "x"
INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.auth", "dbtasks", "shop"]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": Path(__file__).parent / "db.sqlite3",
    }
}
TASKS = {"default": {"BACKEND": "dbtasks.backend.DatabaseBackend"}}
USE_TZ = True
"""
MODELS = """
from django.db import models

class Order(models.Model):
    paid = models.BooleanField(default=False)
"""
TASKS = """
import threading
from django.tasks import task
from .models import Order

@task
def pay(pk):
    Order.objects.filter(pk=pk).update(paid=True)
    return threading.current_thread().name

@task
def fail():
    raise ValueError("no")
"""
PASSING = """
from django.test import TestCase
from django.tasks import default_task_backend
from dbtasks.testing import RunnerTestCase
from .models import Order
from .tasks import fail, pay

class PaymentTests(RunnerTestCase):
    def test_a_task_runs_in_another_thread_and_sees_the_test_s_rows(self):
        order = Order.objects.create()
        result = self.wait_for(pay.enqueue(order.pk))
        self.assertTrue(result.return_value.startswith("dbtasks-"))
        order.refresh_from_db()
        self.assertTrue(order.paid)

    def test_a_failure_is_a_result(self):
        result = self.wait_for(fail.enqueue())
        self.assertEqual(result.status, "FAILED")

    def test_waiting_for_all(self):
        orders = [Order.objects.create() for _ in range(20)]
        default_task_backend.enqueue_all([(pay, [order.pk], {}) for order in orders])
        self.wait()
        self.assertEqual(Order.objects.filter(paid=True).count(), 20)
        self.assertGreaterEqual(self.runner.processed, 20)

    def test_a_test_may_leave_work_behind(self):
        default_task_backend.enqueue_all([(pay, [0], {})] * 20)

class MoreWorkers(RunnerTestCase):
    runner_options = {"workers": 4, "init_periodic": False}

    def test_each_class_has_its_own_runner(self):
        self.assertEqual(self.runner.workers, 4)
        self.assertEqual(Order.objects.count(), 0)

class PlainTests(TestCase):
    def test_the_database_in_memory_is_back_for_others(self):
        from django.db import connection
        self.assertTrue(connection.is_in_memory_db())
        self.assertEqual(Order.objects.count(), 0)
"""
FAILING = """
import datetime
from django.utils import timezone
from dbtasks.testing import RunnerTestCase
from .tasks import pay

class PaymentTests(RunnerTestCase):
    def test_a_task_that_does_not_finish_fails_the_test(self):
        tomorrow = timezone.now() + datetime.timedelta(days=1)
        self.wait_for(pay.using(run_after=tomorrow).enqueue(1), timeout=0.2)
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    files = {
        "manage.py": MANAGE,
        "project/__init__.py": "",
        "project/settings.py": SETTINGS,
        "shop/__init__.py": "",
        "shop/models.py": MODELS,
        "shop/tasks.py": TASKS,
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return tmp_path


def manage_test(project: Path, tests: str) -> subprocess.CompletedProcess[str]:
    (project / "shop" / "tests.py").write_text(tests)
    environment = {k: v for k, v in os.environ.items() if k != "DJANGO_SETTINGS_MODULE"}
    return subprocess.run(
        [sys.executable, "manage.py", "test"],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_tests_of_a_project_pass(project: Path) -> None:
    run = manage_test(project, PASSING)
    assert run.returncode == 0, run.stderr
    assert "Ran 6 tests" in run.stderr
    assert "ResourceWarning" not in run.stderr
    assert not (project / "project" / "db.sqlite3").exists()


def test_a_task_that_does_not_finish_fails_its_test(project: Path) -> None:
    run = manage_test(project, FAILING)
    assert run.returncode == 1
    assert "FAILED (failures=1)" in run.stderr
    assert "shop.tasks.pay was not finished after 0.2 seconds" in run.stderr
