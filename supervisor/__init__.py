"""The daemon of django-dbtasks: a parent, its workers, one scheduler, and janitors when needed.

The folder is called `supervisor`; it is installed and imported as `dbtasks_supervisor`, because
the Supervisor project owns the other name.
"""
