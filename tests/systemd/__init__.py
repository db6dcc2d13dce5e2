"""`make test-systemd`: the units in deploy/systemd under a real systemd, which this boots.

Not part of `make test`, for it needs root and a kernel that lets it make namespaces.
"""
