"""Run rbac: `python -m services.rbac`."""

from services.chassis.server import run
from services.rbac.service import main

if __name__ == "__main__":
    run(main)
