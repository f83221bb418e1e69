"""`python -m gateway`."""

from gateway.service import main
from services.chassis.server import run

run(main)
