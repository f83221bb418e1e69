"""Every SQL statement and every Redis key of identity, one module per kind of thing."""
