"""The commands of the command line, their options, and how they read and print."""
