"""Tasks that behave in every way that real ones do."""

import ctypes
import os
import signal
import socket
import sys
import time

from django.db import connection, transaction
from django.tasks import task

import dbtasks
from dbtasks import TaskCancelled

from .models import Note


@task
def noop():
    pass


@task
def add(a, b=0):
    return a + b


@task
async def async_add(a, b):
    return a + b


@task(takes_context=True)
def attempt(context):
    return [context.attempt, context.task_result.id, context.task_result.worker_ids]


@task
def note(text):
    Note.objects.create(text=text)


@task
def fail(message="no"):
    raise ValueError(message)


@task
def echo(value):
    return value


@task
def wait_for_file(path, started=None):
    """Runs until the file exists; makes `started` to say that it runs."""
    if started:
        open(started, "w").close()
    while not os.path.exists(path):
        time.sleep(0.01)
    return os.getpid()


@task
def send_signal(pid, signum):
    os.kill(pid, signum)


@task
def journal(path, text="", gate=None):
    """Appends a line to a file: one write, so that lines of several processes never mix.

    With `gate` it then waits for that file.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{text} {os.getpid()}\n".encode())
    os.close(descriptor)
    while gate and not os.path.exists(gate):
        time.sleep(0.005)


@task
def pid():
    return os.getpid()


@task
def sys_exit():
    sys.exit(3)


@task
def os_exit(path=None):
    if path:
        _count(path)
    os._exit(3)


@task
def segfault(path=None):
    if path:
        _count(path)
    signal.signal(signal.SIGSEGV, signal.SIG_DFL)
    ctypes.string_at(0)


@task
def keyboard_interrupt():
    raise KeyboardInterrupt


@task
def not_json():
    return object()


@task
def leave_transaction_open():
    transaction.atomic().__enter__()
    Note.objects.create(text="never committed")


@task
def leave_raw_transaction_open():
    with connection.cursor() as cursor:
        cursor.execute("START TRANSACTION" if connection.vendor == "mysql" else "BEGIN")
    Note.objects.create(text="never committed")


@task
def close_connection():
    connection.close()


@task
def break_connection():
    """Closes the socket under Django's connection."""
    connection.ensure_connection()
    connection.connection.close()


def _count(path):
    with open(path, "a") as file:
        file.write("x")


@task
def sleep_in_the_database(seconds):
    with connection.cursor() as cursor:
        function = "sleep" if connection.vendor == "mysql" else "pg_sleep"
        cursor.execute(f"SELECT {function}(%s)", [seconds])


@task
def socket_options(names):
    """The TCP options of the connection to the database, as far as the system has them."""
    connection.ensure_connection()
    with socket.socket(fileno=os.dup(connection.connection.fileno())) as raw:
        known = {name: getattr(socket, name) for name in names if hasattr(socket, name)}
        return {name: raw.getsockopt(socket.IPPROTO_TCP, known[name]) for name in known}


@task
def stubborn(started):
    """Makes the file `started` and then does not end, whatever is raised in it."""
    while True:
        try:
            open(started, "w").close()
            while True:
                time.sleep(0.01)
        except BaseException:
            pass


@dbtasks.task(max_attempts=5)
def tidy_when_cancelled(started, tidied):
    """Makes the file `started`, then waits for ever; makes the file `tidied` when cancelled."""
    try:
        open(started, "w").close()  # what is begun is protected: it may be cancelled at once
        while True:
            time.sleep(0.01)
    except TaskCancelled:
        open(tidied, "w").close()
        raise


@task
def finish_when_cancelled(started, gate):
    """Makes the file `started`, waits for ever, and returns when it is cancelled."""
    try:
        open(started, "w").close()
        while not os.path.exists(gate):
            time.sleep(0.01)
    except TaskCancelled:
        return "done all the same"


@task
def wait_for_file_after(started, path):
    """As wait_for_file, with its arguments the other way round."""
    return wait_for_file.func(path, started)
