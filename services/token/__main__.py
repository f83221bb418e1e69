"""`python -m services.token`."""

from services.chassis.server import run
from services.token.service import main

run(main)
