"""`python -m jaxrec`."""

from jaxrec.cli import main

if __name__ == "__main__":
    main()
