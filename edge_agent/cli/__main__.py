"""`python -m edge_agent.cli` is the program `edge-agent`."""

from edge_agent.cli.main import main

if __name__ == "__main__":
    main()
