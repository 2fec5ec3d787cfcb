"""Benchmarks and plans: what this machine does with a model, alone and in the whole live path.

Enters: a model, sources, how long to measure. Leaves: figures as tables or JSON. `bare` runs an engine and
nothing else in pinned processes, `live` runs the processes of `sparsecam up`; `engine`, `pipeline` and
`plan_command` are the commands. Imported by services/cli_bench.py only; nothing of the live path imports it.
"""
