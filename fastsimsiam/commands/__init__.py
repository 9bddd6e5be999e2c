"""The commands of the command line, a file each: its arguments, and `run(argv)`."""
