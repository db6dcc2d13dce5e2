"""`make chaos`: real load on real databases while processes and servers are killed at random.

`python -m tests.chaos --help` says what it does. The parts, in the order of a run:

* ``campaign``  one database from its start to its verdict
* ``producer``  enqueues every kind of task (``tasks``, ``kinds``), and knows what was committed
* ``nodes``     the supervisors under attack
* ``plan``, ``attack``   which faults come when, drawn from the seed; doing them to processes
* ``journal``, ``audit``  what was executed (a file) and what was written (triggers)
* ``history``, ``claims``, ``promises``  what happened, and whether it was allowed
* ``leftovers`` what must be gone at the end
* ``story``     the timeline of a task for which a promise was broken
"""
