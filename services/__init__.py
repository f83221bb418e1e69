"""The server half of Watchword: one package per context, each run as `python -m services.<context>`."""
