"""`python -m tests.integration.elsewhere ARGUMENTS`: the command as on another machine.

It cannot look at the processes of this one, so it has to wait for a lease, which is short here.
"""

from pipeline.cli.app import main
from pipeline.run_directory import ownership


def _elsewhere() -> str:
    return "another machine"


ownership._machine = _elsewhere
ownership.LEASE_S = 3.0

if __name__ == "__main__":
    main()
