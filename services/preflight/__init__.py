"""The checks before going live, executed: `scripts/preflight` looks at a deployment from outside and says what is not as it must be."""
