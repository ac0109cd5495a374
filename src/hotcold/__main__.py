"""`python -m hotcold` is the `hotcold` command."""

from hotcold.cli import main

main()
