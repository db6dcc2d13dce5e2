"""Two versions of dbtasks on one database: `make test-upgrade`, and what its migrations lock."""
