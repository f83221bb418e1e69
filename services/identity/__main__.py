"""`python -m services.identity`."""

from services.chassis.server import run
from services.identity.service import main

run(main)
