"""`python -m delt` is the `delt` command."""

from delt.cli import main

if __name__ == "__main__":
    main()
