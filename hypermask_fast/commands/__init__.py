"""The commands of ``hypermask``: a module each, with HELP, add_arguments and run."""
