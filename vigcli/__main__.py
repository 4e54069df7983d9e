"""`python -m vigcli` is the same program as `vig`."""

from vigcli.cli.main import main

if __name__ == "__main__":
    main()
