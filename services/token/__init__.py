"""The token context: issues, verifies, refreshes and revokes tokens."""
