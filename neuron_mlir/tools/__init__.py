"""The command line tools. Each is thin: it reads arguments, calls the library, and prints."""
