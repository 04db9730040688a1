"""`python -m efface`: the same command line as `efface`."""

from efface.launch.cli import main

if __name__ == "__main__":
    main()
