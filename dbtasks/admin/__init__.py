"""What operators see in Django's admin: the dashboard, the tasks, and what can be done with them.

Rows belong to the engines: edited behind their back, a claim's fence would not hold. So there are
no forms for rows; each change goes through `dbtasks.operations`, where the engine decides.
"""

from django.apps import apps

# Template tags are imported in every project, also in those without an admin.
if apps.is_installed("django.contrib.admin"):
    from . import tables, tasks  # noqa: F401  (they register themselves)
