"""Triggers that note every change of a queue's row, in the transaction that makes it.

The product cannot forget to tell us: a second result for a task, or a claim that was taken from
under a worker, shows here whoever wrote it.
"""

from django.db import connection

COLUMNS = "task_id, at, old_status, new_status, old_worker, new_worker, attempt, failures, crashes"
NOW = {
    "sqlite": "(julianday('now') - 2440587.5) * 86400.0",
    "postgresql": "extract(epoch FROM clock_timestamp())",
    "mysql": "UNIX_TIMESTAMP(SYSDATE(6))",
}
TEXT = {"sqlite": "OLD.id", "postgresql": "OLD.id::text", "mysql": "CAST(OLD.id AS CHAR)"}


def install() -> None:
    """Creates the triggers; the tables must be there."""
    vendor = connection.vendor
    with connection.cursor() as cursor:
        for event in ("UPDATE", "DELETE"):
            for statement in statements(vendor, event):
                cursor.execute(statement)


def statements(vendor: str, event: str) -> list[str]:
    new = "NEW.status, OLD.claimed_by, NEW.claimed_by, NEW.attempt, NEW.failures, NEW.crashes"
    if event == "DELETE":
        new = "'DELETED', OLD.claimed_by, NULL, OLD.attempt, OLD.failures, OLD.crashes"
    insert = (
        f"INSERT INTO chaos_change ({COLUMNS}) "
        f"VALUES ({TEXT[vendor]}, {NOW[vendor]}, OLD.status, {new});"
    )
    name = f"chaos_{event.lower()}"
    trigger = f"CREATE TRIGGER {name} AFTER {event} ON dbtasks_scheduledtask FOR EACH ROW"
    if vendor != "postgresql":
        return [f"{trigger} BEGIN {insert} END"]
    return [
        f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN {insert} RETURN NULL; END $$",
        f"{trigger} EXECUTE FUNCTION {name}()",
    ]
