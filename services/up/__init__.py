"""The whole suite on one machine: the table of its processes, and the supervisor that runs them for `scripts/up` and for the tests."""
