"""What a person or a container starts: the CLI, one module a process, the root config, the supervisor.

Enters: a command line, `sparsecam.yaml`, environment variables, signals.
Leaves: running processes with logs, health reports and metrics; exit codes; alerts on the terminal.
It composes the rooms `ingest`, `detector` and `sink` and holds none of their logic.
Imported by nobody.
"""
