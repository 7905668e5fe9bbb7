"""`python -m edge_agent.daemon` is the front process."""

import sys

from edge_agent.daemon.front import main

if __name__ == "__main__":
    sys.exit(main())
