"""Watchword for its callers: the contract's generated code, and the failures that calls end in."""
