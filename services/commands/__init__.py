"""What the commands of `sparsecam` do, one module each; services/cli.py has their options.

A module here is imported only when its command runs, which keeps `sparsecam --help` fast.
"""
