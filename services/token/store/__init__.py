"""Every SQL statement of token, one module per kind of thing."""
